"""What a checkpoint is and how the engine runs it; torch-free, shared by front and engine."""

from typing import Literal

import msgspec

Layout = Literal["original", "native"]
TextFamily = Literal["qwen2", "qwen3", "llama", "internlm2"]
RopeKind = Literal["default", "linear", "dynamic", "yarn", "llama3"]
DataType = Literal["bf16", "fp16", "fp32"]


class RopeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary embedding parameters under the names of the checkpoints' `rope_scaling`."""

    kind: RopeKind = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True


class TextConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A dense decoder-only language model."""

    family: TextFamily
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    max_position: int
    norm_eps: float
    rope: RopeConfig
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_head: bool


class VisionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An InternViT tower; `num_layers` is what runs (after `select_layer`)."""

    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int
    image_size: int
    patch_size: int
    norm: Literal["layer_norm", "rms_norm"]
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    checkpoint_image_size: int
    """Side in pixels that the stored position embeddings were made for."""


class TilingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint's rule for cutting pictures, and what a tile costs."""

    tile_size: int
    tokens_per_tile: int
    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One checkpoint, whatever its layout on disk.

    Attributes:
        architecture: The name that its `config.json` gives.
        downsample_ratio: Pixel-shuffle factor of the projector, 0.5 for the published ones.
        template: Name of the conversation template of the original layout, or None.
        data_type: The weights' type on disk.
        eos_ids: Ids that end a sequence, from `generation_config.json` or `config.json`.
        generation: Sampling defaults that `generation_config.json` sets, under its own names.
    """

    architecture: str
    layout: Layout
    text: TextConfig
    vision: VisionConfig | None
    tiling: TilingConfig | None
    downsample_ratio: float
    template: str | None
    data_type: DataType
    eos_ids: tuple[int, ...]
    bos_id: int | None
    generation: dict[str, float | int | bool]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an engine rank is told; resolved once from the flags, by the front.

    Attributes:
        data_type: Compute type; `fp32` on the CPU.
        mem_fraction: Share of device memory to plan with (see the flag).
        page_size: Tokens per KV page.
        max_total_token_num: KV tokens; None plans them from `mem_fraction`.
        chunked_prefill_size: Largest prefill chunk in tokens; None computes prompts whole.
        max_itl_ms: Streams' gaps to stay below by cutting prefill and vision work; 0 is off.
        prefix_cache: Whether prompts reuse pages of earlier ones.
        cache_capacity: Picture embeddings kept, in pictures.
        cache_bytes: Byte bound of the embedding cache; None derives it from the memory plan.
        visual_infer_batch_size: Pictures per tower batch; None packs by the tile budget.
        load_workers: Parallel readers of weight shards.
        arena_bytes: Size of the shared-memory arena whose descriptor the engine inherits.
    """

    model_dir: str
    model: ModelConfig
    device: Literal["cpu", "cuda"]
    data_type: DataType
    mem_fraction: float
    page_size: int
    max_total_token_num: int | None
    max_req_total_len: int
    running_max_req_size: int
    chunked_prefill_size: int | None
    max_itl_ms: float
    batch_max_tokens: int
    prefix_cache: bool
    cache_capacity: int
    cache_bytes: int | None
    visual_infer_batch_size: int | None
    load_workers: int
    arena_bytes: int
