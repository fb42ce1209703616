"""Reads a checkpoint's JSON files into a `ModelConfig`; no weight is read, no code executed.

Both layouts are understood: the original one (`InternVLChatModel`) with the defaults of its
published configuration classes, and transformers' (`InternVLForConditionalGeneration`).
"""

from pathlib import Path
from typing import Literal, NoReturn

import msgspec

from lightvl.config import (
    DataType,
    Layout,
    ModelConfig,
    TextConfig,
    TextFamily,
    TilingConfig,
    VisionConfig,
)
from lightvl.errors import StartupError
from lightvl.rope_config import context_len, load_rope
from lightvl.shards import find_shards
from lightvl.utils.fields import Fields

Norm = Literal["layer_norm", "rms_norm"]

SUPPORTED = (
    "InternVL 1.5 to 3.5, dense (InternVLChatModel or InternVLForConditionalGeneration), "
    "with a qwen2, qwen3, llama or internlm2 language model"
)
FAMILIES: dict[str, TextFamily] = {
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "llama": "llama",
    "internlm2": "internlm2",
}
MAX_POSITIONS: dict[TextFamily, int] = {
    "qwen2": 32768,
    "qwen3": 32768,
    "llama": 2048,
    "internlm2": 2048,
}
DATA_TYPES: dict[str, DataType] = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SAMPLING_DEFAULTS = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "max_new_tokens",
)


def load_model_config(model_dir: Path) -> ModelConfig:
    """Reads what a checkpoint is.

    Args:
        model_dir: Holds `config.json`, safetensors and, optionally, `generation_config.json` and
            `processor_config.json` or `preprocessor_config.json`.

    Raises:
        StartupError: A file is missing or unreadable, or the checkpoint isn't supported; exit
            code 2.
    """
    if not (model_dir / "config.json").is_file():
        raise StartupError(f"{model_dir}: no config.json; expected {SUPPORTED}")
    config = Fields.read(model_dir / "config.json")
    readers = {"internvl_chat": _original, "internvl": _native}
    model_type = str(config.get("model_type"))
    if model_type not in readers:
        _refuse(f"model_type {model_type!r}")
    for part in (config, config.nested("llm_config"), config.nested("text_config")):
        if "quantization_config" in part:
            method = part.nested("quantization_config").get("quant_method")
            _refuse(f"a quantized checkpoint (quantization_config: {method})")
    model = readers[model_type](config, model_dir)
    find_shards(model_dir)
    return model


def _original(config: Fields, model_dir: Path) -> ModelConfig:
    text = config.nested("llm_config")
    tied = text.flag("tie_word_embeddings", config.flag("tie_word_embeddings", False))
    if config.text("ps_version", "v1") != "v2":
        raise config.bad("ps_version", "v2")
    model = _text_model("original", config, text, tied, model_dir)
    if "vision_config" not in config:
        return model
    tower = config.nested("vision_config")
    stored_size = tower.square("image_size", 224)
    vision = _vision(
        tower,
        tile_size=config.square("force_image_size", stored_size),
        checkpoint_size=stored_size,
        select_layer=_select_layer(config, "select_layer"),
        qkv_bias=tower.flag("qkv_bias", False),
        qk_norm=tower.flag("qk_normalization", True),
        norm="rms_norm",
    )
    dynamic = config.flag("dynamic_image_size", False)
    tiling = TilingConfig(
        tile_size=vision.image_size,
        tokens_per_tile=_tokens_per_tile(vision, model.downsample_ratio),
        min_tiles=config.integer("min_dynamic_patch", 1) if dynamic else 1,
        max_tiles=config.integer("max_dynamic_patch", 6) if dynamic else 1,
        use_thumbnail=config.flag("use_thumbnail", False),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return msgspec.structs.replace(model, vision=vision, tiling=tiling)


def _native(config: Fields, model_dir: Path) -> ModelConfig:
    text = config.nested("text_config")
    tied = config.flag("tie_word_embeddings", text.flag("tie_word_embeddings", True))
    model = _text_model("native", config, text, tied, model_dir)
    if model.text.family == "internlm2":
        _refuse("internlm2 in transformers' layout")
    if "vision_config" not in config:
        return model
    _check_native(config)
    tower, processor = config.nested("vision_config"), _image_processor(model_dir)
    stored_size = tower.square("image_size", 448)
    vision = _vision(
        tower,
        tile_size=processor.nested("size").square("height", stored_size),
        checkpoint_size=stored_size,
        select_layer=_select_layer(config, "vision_feature_layer"),
        qkv_bias=tower.flag("attention_bias", False),
        qk_norm=tower.flag("use_qk_norm", False),
        norm="layer_norm",
    )
    tiling = TilingConfig(
        tile_size=vision.image_size,
        tokens_per_tile=_tokens_per_tile(vision, model.downsample_ratio),
        min_tiles=processor.integer("min_patches", 1),
        max_tiles=processor.integer("max_patches", 12),
        use_thumbnail=True,
        mean=processor.triple("image_mean", IMAGENET_MEAN),
        std=processor.triple("image_std", IMAGENET_STD),
    )
    return msgspec.structs.replace(model, vision=vision, tiling=tiling)


def _text_model(
    layout: Layout, config: Fields, text: Fields, tied: bool, model_dir: Path
) -> ModelConfig:
    """Returns the model without its tower."""
    generation = Fields.read(model_dir / "generation_config.json")
    end_ids = (_ids(x, "eos_token_id") for x in (generation, config, text))
    start_ids = (_ids(x, "bos_token_id") for x in (generation, config, text))
    return ModelConfig(
        architecture=_architecture(config),
        layout=layout,
        text=_text(text, tied),
        vision=None,
        tiling=None,
        downsample_ratio=config.number("downsample_ratio", 0.5),
        template=config.text("template", "") or None,
        data_type=_data_type(config, text),
        eos_ids=next(filter(None, end_ids), ()),
        bos_id=next((ids[0] for ids in start_ids if ids), None),
        generation=_sampling_defaults(generation),
    )


def _architecture(config: Fields) -> str:
    names = config.get("architectures")
    return str(names[0] if isinstance(names, list) and names else config.get("model_type"))


def _data_type(config: Fields, text: Fields) -> DataType:
    for fields in (config, text):
        for key in ("dtype", "torch_dtype"):
            if key in fields:
                return fields.choice(key, DATA_TYPES, "")
    return "bf16"


def _text(fields: Fields, tied: bool) -> TextConfig:
    name = str(fields.get("model_type"))
    if name not in FAMILIES:
        _refuse(f"the language model {name!r}")
    family = FAMILIES[name]
    fields.choice("hidden_act", {"silu": None}, "silu")
    if fields.flag("use_sliding_window", False):
        raise fields.bad("use_sliding_window", "false")
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    default_dim = 128 if family == "qwen3" else hidden_size // num_heads
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.bad("num_key_value_heads", f"a divisor of {num_heads}")
    max_position = fields.integer("max_position_embeddings", MAX_POSITIONS[family])
    rope = load_rope(fields, max_position)
    bias = fields.flag("bias" if family == "internlm2" else "attention_bias", False)
    return TextConfig(
        family=family,
        hidden_size=hidden_size,
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=fields.integer("head_dim", default_dim),
        ffn_size=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        max_position=context_len(rope, max_position),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=rope,
        qkv_bias=family == "qwen2" or bias,
        out_bias=family != "qwen2" and bias,
        mlp_bias=fields.flag("mlp_bias", False),
        qk_norm=family == "qwen3",
        tied_head=tied,
    )


def _vision(
    fields: Fields,
    *,
    tile_size: int,
    checkpoint_size: int,
    select_layer: int,
    qkv_bias: bool,
    qk_norm: bool,
    norm: Norm,
) -> VisionConfig:
    fields.choice("hidden_act", {"gelu": None}, "gelu")
    if fields.integer("num_channels", 3) != 3:
        raise fields.bad("num_channels", "3")
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if hidden_size % num_heads:
        raise fields.bad("num_attention_heads", f"a divisor of {hidden_size}")
    patch_size = fields.square("patch_size", 14)
    for size in (tile_size, checkpoint_size):
        if size % patch_size:
            raise StartupError(f"{fields.where}: {size} pixels are no multiple of {patch_size}")
    depth = fields.integer("num_hidden_layers")
    num_layers = select_layer if select_layer >= 0 else depth + select_layer + 1
    if not 0 <= num_layers <= depth:
        raise StartupError(f"{fields.where}: there is no layer {select_layer} among {depth}")
    norms: dict[str, Norm] = {"layer_norm": "layer_norm", "rms_norm": "rms_norm"}
    return VisionConfig(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        ffn_size=fields.integer("intermediate_size"),
        image_size=tile_size,
        patch_size=patch_size,
        norm=fields.choice("norm_type", norms, norm),
        norm_eps=fields.number("layer_norm_eps", 1e-6),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        checkpoint_image_size=checkpoint_size,
    )


def _check_native(config: Fields) -> None:
    vision = config.nested("vision_config")
    config.choice("vision_feature_select_strategy", {"default": None}, "default")
    config.choice("projector_hidden_act", {"gelu": None}, "gelu")
    for key in ("use_mean_pooling", "use_absolute_position_embeddings"):
        if not vision.flag(key, True):
            raise vision.bad(key, "true")


def _select_layer(config: Fields, key: str) -> int:
    return config.integer(key, -1, least=-(2**31))


def _tokens_per_tile(vision: VisionConfig, ratio: float) -> int:
    side, factor = vision.image_size // vision.patch_size, round(1 / ratio)
    if side % factor:
        raise StartupError(
            f"config.json: {side}x{side} patches can't be merged {factor} by {factor}"
        )
    return int((side // factor) ** 2)


def _image_processor(model_dir: Path) -> Fields:
    processor = Fields.read(model_dir / "processor_config.json")
    if "image_processor" in processor:
        return processor.nested("image_processor")
    return Fields.read(model_dir / "preprocessor_config.json")


def _ids(fields: Fields, key: str) -> tuple[int, ...]:
    value = fields.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(x, int) and x >= 0 for x in ids):
        raise fields.bad(key, "an id or a list of ids")
    return tuple(ids)


def _sampling_defaults(generation: Fields) -> dict[str, float | int | bool]:
    defaults: dict[str, float | int | bool] = {}
    for key in SAMPLING_DEFAULTS:
        value = generation.get(key)
        if value is None:
            continue
        if not isinstance(value, bool | int | float):
            raise generation.bad(key, "a number, true or false")
        defaults[key] = value
    return defaults


def _refuse(what: str) -> NoReturn:
    raise StartupError(f"{what} is not supported; supported: {SUPPORTED}")
