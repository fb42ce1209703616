"""Writes tiny random InternVL checkpoints, in both layouts, for the tests.

The weights are made once under the native layout's names and renamed for the original one, so
that the same seed gives the same model in either layout; `internlm2` is `llama` regrouped. The
initialisation is raised far above a trained model's, or greedy text would repeat one token.
"""

import json
import re
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from lightvl.config import DataType, Layout, TextFamily
from lightvl.testing.tokenizers import VOCAB_SIZE, write_tokenizer

VisionKind = Literal["300m", "6b"]
Tensors = dict[str, torch.Tensor]

TORCH_TYPES: dict[DataType, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
PATCH_SIZE = 14


def write_checkpoint(
    path: Path,
    *,
    family: TextFamily = "qwen2",
    layout: Layout = "original",
    vision: VisionKind = "300m",
    seed: int = 0,
    tied: bool = False,
    dtype: DataType = "bf16",
    num_shards: int = 1,
    tile_size: int = 56,
    max_position: int = 4096,
    rope_scaling: dict[str, Any] | None = None,
) -> Path:
    """Writes a random checkpoint with its configuration and tokenizer.

    Args:
        path: Directory, made if absent.
        family: Language model; `internlm2` exists in the original layout alone.
        layout: `original` (InternVLChatModel) or `native` (transformers' InternVL).
        vision: `300m`: LayerNorm and biases; `6b`: RMSNorm, QK-norm, 25 heads, no qkv bias.
        seed: Of the weights; equal seeds give equal models in both layouts.
        tied: Whether the head is the embedding table.
        dtype: The weights' type on disk.
        num_shards: Safetensors files; more than one come with an index.
        tile_size: Pixels; a multiple of 28. A tile makes `(tile_size / 28)^2` tokens.
        max_position: The language model's `max_position_embeddings`.
        rope_scaling: The rotary variant, under transformers' names.

    Returns:
        `path`.
    """
    path.mkdir(parents=True, exist_ok=True)
    text = text_config(family, tied=tied, max_position=max_position, dtype=dtype)
    tower = vision_config(vision, tile_size)
    tensors = random_tensors(text, tower, seed)
    if layout == "original":
        config = _original_config(text, tower, rope_scaling)
        tensors = to_original_names(tensors, text)
        _write_json(path / "preprocessor_config.json", _clip_processor(tile_size))
    else:
        config = _native_config(text, tower, rope_scaling)
        _write_json(path / "processor_config.json", _native_processor(tile_size))
    _write_json(path / "config.json", config)
    _write_json(path / "generation_config.json", {"eos_token_id": text["eos_token_id"]})
    write_weights(path, {k: v.to(TORCH_TYPES[dtype]) for k, v in tensors.items()}, num_shards)
    write_tokenizer(path)
    return path


def text_config(
    family: TextFamily, *, tied: bool, max_position: int, dtype: DataType
) -> dict[str, Any]:
    """Returns the language model's part of `config.json`, without its rotary settings."""
    names = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "internlm2": "InternLM2"}
    config = {
        "architectures": [f"{names[family]}ForCausalLM"],
        "model_type": family,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": max_position,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "torch_dtype": {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[dtype],
        "bos_token_id": None,
        "eos_token_id": [0, 2],
    }
    if family == "qwen3":
        config["head_dim"] = 32
    if family == "internlm2":
        config["bias"] = False
    return config


def vision_config(kind: VisionKind, tile_size: int) -> dict[str, Any]:
    """Returns the tower's part of `config.json` in the original layout's names."""
    large = kind == "6b"
    return {
        "model_type": "intern_vit_6b",
        "hidden_size": 200 if large else 64,
        "intermediate_size": 256 if large else 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 25 if large else 4,
        "image_size": tile_size,
        "patch_size": PATCH_SIZE,
        "norm_type": "rms_norm" if large else "layer_norm",
        "layer_norm_eps": 1e-6,
        "qkv_bias": not large,
        "qk_normalization": large,
        "hidden_act": "gelu",
    }


def random_tensors(text: dict[str, Any], tower: dict[str, Any], seed: int) -> Tensors:
    """Returns float32 weights under the native layout's names on disk."""
    generator = torch.Generator().manual_seed(seed)

    def fill(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        noise = torch.randn(shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            return 1 + 0.2 * noise
        if "lambda" in name:
            return 0.5 + 0.1 * noise
        return 0.2 * noise

    shapes = _vision_shapes(tower) | _projector_shapes(text, tower) | _text_shapes(text)
    return {name: fill(name, shape) for name, shape in shapes.items()}


def to_original_names(tensors: Tensors, text: dict[str, Any]) -> Tensors:
    """Returns native weights under the original layout's names, q, k and v stacked as there."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(vision_tower.+attention\.)q_proj\.(weight|bias)", name):
            parts = [tensors[f"{match[1]}{x}_proj.{match[2]}"] for x in "qkv"]
            renamed[_rename(f"{match[1]}qkv.{match[2]}", _VISION_NAMES)] = torch.cat(parts)
        elif name.startswith("vision_tower") and re.search(r"\.[kv]_proj\.", name):
            continue
        else:
            renamed[_rename(name, _VISION_NAMES)] = tensor
    return _to_internlm2(renamed, text) if text["model_type"] == "internlm2" else renamed


def write_weights(path: Path, tensors: Tensors, num_shards: int = 1) -> None:
    """Writes safetensors: one file, or shards of equal count with an index."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if num_shards == 1:
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    names = list(tensors)
    for i in range(num_shards):
        file = f"model-{i + 1:05d}-of-{num_shards:05d}.safetensors"
        mine = names[i::num_shards]
        save_file({name: tensors[name] for name in mine}, path / file, {"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    _write_json(path / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


_VISION_NAMES = [
    (r"^vision_tower\.embeddings\.cls_token", "vision_model.embeddings.class_embedding"),
    (
        r"^vision_tower\.embeddings\.position_embeddings",
        "vision_model.embeddings.position_embedding",
    ),
    (
        r"^vision_tower\.embeddings\.patch_embeddings\.projection",
        "vision_model.embeddings.patch_embedding",
    ),
    (r"^vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
    (r"\.attention\.projection_layer\.", ".attn.proj."),
    (r"\.attention\.(qkv|q_norm|k_norm)\.", r".attn.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.lambda_(\d)$", r".ls\1"),
    (r"^multi_modal_projector\.layer_norm\.", "mlp1.0."),
    (r"^multi_modal_projector\.linear_1\.", "mlp1.1."),
    (r"^multi_modal_projector\.linear_2\.", "mlp1.3."),
]

_INTERNLM2_NAMES = [
    ("lm_head", "output"),
    ("embed_tokens", "tok_embeddings"),
    ("self_attn.o_proj", "attention.wo"),
    ("mlp.gate_proj", "feed_forward.w1"),
    ("mlp.up_proj", "feed_forward.w3"),
    ("mlp.down_proj", "feed_forward.w2"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
]


def _rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _to_internlm2(tensors: Tensors, text: dict[str, Any]) -> Tensors:
    num_kv_heads = text["num_key_value_heads"]
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(language_model.+)\.self_attn\.q_proj\.weight", name):
            parts = [tensors[f"{match[1]}.self_attn.{x}_proj.weight"] for x in "qkv"]
            head_dim = parts[1].shape[0] // num_kv_heads
            heads = [x.view(num_kv_heads, -1, head_dim, x.shape[1]) for x in parts]
            renamed[f"{match[1]}.attention.wqkv.weight"] = torch.cat(heads, 1).flatten(0, 2)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            renamed[_rename(name, _INTERNLM2_NAMES)] = tensor
    return renamed


def _vision_shapes(tower: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, ffn = tower["hidden_size"], tower["intermediate_size"]
    num_patches = (tower["image_size"] // PATCH_SIZE) ** 2
    embeddings = "vision_tower.embeddings."
    shapes: dict[str, tuple[int, ...]] = {
        f"{embeddings}cls_token": (1, 1, width),
        f"{embeddings}position_embeddings": (1, 1 + num_patches, width),
        f"{embeddings}patch_embeddings.projection.weight": (width, 3, PATCH_SIZE, PATCH_SIZE),
        f"{embeddings}patch_embeddings.projection.bias": (width,),
    }
    for i in range(tower["num_hidden_layers"]):
        layer = f"vision_tower.encoder.layer.{i}."
        for part in "qkv":
            shapes |= _linear(f"{layer}attention.{part}_proj", width, width, tower["qkv_bias"])
        if tower["qk_normalization"]:
            shapes[f"{layer}attention.q_norm.weight"] = (width,)
            shapes[f"{layer}attention.k_norm.weight"] = (width,)
        shapes |= _linear(f"{layer}attention.projection_layer", width, width)
        for norm in ("layernorm_before", "layernorm_after"):
            shapes[f"{layer}{norm}.weight"] = (width,)
            if tower["norm_type"] == "layer_norm":
                shapes[f"{layer}{norm}.bias"] = (width,)
        shapes |= _linear(f"{layer}mlp.fc1", ffn, width) | _linear(f"{layer}mlp.fc2", width, ffn)
        shapes |= {f"{layer}lambda_1": (width,), f"{layer}lambda_2": (width,)}
    return shapes


def _projector_shapes(text: dict[str, Any], tower: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    shuffled, hidden = 4 * tower["hidden_size"], text["hidden_size"]
    projector = "multi_modal_projector."
    return {
        f"{projector}layer_norm.weight": (shuffled,),
        f"{projector}layer_norm.bias": (shuffled,),
        **_linear(f"{projector}linear_1", hidden, shuffled),
        **_linear(f"{projector}linear_2", hidden, hidden),
    }


def _text_shapes(text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, ffn = text["hidden_size"], text["intermediate_size"]
    head_dim = text.get("head_dim", hidden // text["num_attention_heads"])
    widths = {"q": text["num_attention_heads"] * head_dim}
    widths["k"] = widths["v"] = text["num_key_value_heads"] * head_dim
    model = "language_model.model."
    shapes: dict[str, tuple[int, ...]] = {
        f"{model}embed_tokens.weight": (text["vocab_size"], hidden),
        f"{model}norm.weight": (hidden,),
    }
    for i in range(text["num_hidden_layers"]):
        layer = f"{model}layers.{i}."
        for part, width in widths.items():
            bias = text["model_type"] == "qwen2"
            shapes |= _linear(f"{layer}self_attn.{part}_proj", width, hidden, bias)
        shapes |= _linear(f"{layer}self_attn.o_proj", hidden, widths["q"], bias=False)
        if text["model_type"] == "qwen3":
            shapes[f"{layer}self_attn.q_norm.weight"] = (head_dim,)
            shapes[f"{layer}self_attn.k_norm.weight"] = (head_dim,)
        shapes |= _linear(f"{layer}mlp.gate_proj", ffn, hidden, bias=False)
        shapes |= _linear(f"{layer}mlp.up_proj", ffn, hidden, bias=False)
        shapes |= _linear(f"{layer}mlp.down_proj", hidden, ffn, bias=False)
        shapes[f"{layer}input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (hidden,)
    if not text["tie_word_embeddings"]:
        shapes["language_model.lm_head.weight"] = (text["vocab_size"], hidden)
    return shapes


def _linear(name: str, rows: int, columns: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (rows, columns)}
    if bias:
        shapes[f"{name}.bias"] = (rows,)
    return shapes


def _original_config(
    text: dict[str, Any], tower: dict[str, Any], rope_scaling: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "llm_config": {**text, "rope_theta": 10000.0, "rope_scaling": rope_scaling},
        "vision_config": tower,
        "force_image_size": tower["image_size"],
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": text["torch_dtype"],
    }


def _native_config(
    text: dict[str, Any], tower: dict[str, Any], rope_scaling: dict[str, Any] | None
) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, **(rope_scaling or {})}
    side = tower["image_size"]
    native_tower = {
        **{k: v for k, v in tower.items() if k not in ("qkv_bias", "qk_normalization")},
        "model_type": "internvl_vision",
        "image_size": [side, side],
        "patch_size": [PATCH_SIZE, PATCH_SIZE],
        "attention_bias": tower["qkv_bias"],
        "use_qk_norm": tower["qk_normalization"],
        "use_mean_pooling": True,
        "use_absolute_position_embeddings": True,
    }
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "text_config": {**text, "rope_parameters": rope},
        "vision_config": native_tower,
        "downsample_ratio": 0.5,
        "image_seq_length": (side // PATCH_SIZE // 2) ** 2,
        "image_token_id": 5,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": text["tie_word_embeddings"],
        "dtype": text["torch_dtype"],
    }


def _clip_processor(tile_size: int) -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPFeatureExtractor",
        "do_center_crop": True,
        "crop_size": tile_size,
        "size": tile_size,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "resample": 3,
    }


def _native_processor(tile_size: int) -> dict[str, Any]:
    image_processor = {
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "crop_to_patches": True,
        "min_patches": 1,
        "max_patches": 12,
        "size": {"height": tile_size, "width": tile_size},
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "resample": 3,
    }
    return {"processor_class": "InternVLProcessor", "image_processor": image_processor}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False))
