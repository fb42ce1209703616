"""Writes tiny random InternVL checkpoints, in both layouts, for the tests."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from lightvl.config import DataType, Layout, TextFamily
from lightvl.testing.checkpoint_weights import Tensors, random_tensors, to_original_names
from lightvl.testing.tokenizers import VOCAB_SIZE, write_tokenizer

VisionKind = Literal["300m", "6b"]

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
    text = text_config(family, tied=tied, max_position=max_position, dtype=dtype)
    tower = vision_config(vision, tile_size)
    tensors = random_tensors(text, tower, seed)
    write_model(
        path, layout, text, tower, tensors, num_shards=num_shards, rope_scaling=rope_scaling
    )
    write_tokenizer(path)
    return path


def write_model(
    path: Path,
    layout: Layout,
    text: dict[str, Any],
    tower: dict[str, Any],
    tensors: Tensors,
    *,
    num_shards: int = 1,
    rope_scaling: dict[str, Any] | None = None,
    image_token_id: int = 5,
) -> None:
    """Writes a checkpoint without its tokenizer.

    Args:
        path: Directory, made if absent.
        layout: The names and the configuration to write.
        text: The language model's part of `config.json`, `torch_dtype` among it.
        tower: The tower's part, under the original layout's names.
        tensors: The weights, under the native layout's names.
        num_shards: Safetensors files.
        rope_scaling: The rotary variant, under transformers' names.
        image_token_id: Id of `<IMG_CONTEXT>`, which the native configuration holds.
    """
    path.mkdir(parents=True, exist_ok=True)
    size = tower["image_size"]
    if layout == "original":
        config = _original_config(text, tower, rope_scaling)
        tensors = to_original_names(tensors, text)
        _write_json(path / "preprocessor_config.json", _clip_processor(size))
    else:
        config = _native_config(text, tower, rope_scaling) | {"image_token_id": image_token_id}
        _write_json(path / "processor_config.json", _native_processor(size))
    _write_json(path / "config.json", config)
    _write_json(path / "generation_config.json", {"eos_token_id": text["eos_token_id"]})
    dtype = getattr(torch, text["torch_dtype"])
    write_weights(path, {name: x.to(dtype) for name, x in tensors.items()}, num_shards)


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


def _original_config(
    text: dict[str, Any], tower: dict[str, Any], rope_scaling: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "llm_config": {"rope_theta": 10000.0, **text, "rope_scaling": rope_scaling},
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
    text: dict[str, Any], tower: dict[str, Any], rope_scaling: dict[str, Any] | None = None
) -> dict[str, Any]:
    theta = text.get("rope_theta", 10000.0)
    rope = {"rope_type": "default", "rope_theta": theta, **(rope_scaling or {})}
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
