"""Writes a trained demo model as a checkpoint in the original InternVL layout."""

import json
from pathlib import Path

import torch
from model import DemoConfig, DemoModel
from safetensors.torch import save_file
from tokenizer import save_tokenizer
from tokenizers import Tokenizer
from torch import Tensor


def model_config(config: DemoConfig, tokenizer: Tokenizer) -> dict[str, object]:
    """The `config.json` of the original layout."""
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    text = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "bos_token_id": pad,
        "eos_token_id": end,
        "pad_token_id": pad,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.text_mlp,
        "max_position_embeddings": config.max_len,
        "max_window_layers": config.text_layers,
        "num_attention_heads": config.text_heads,
        "num_hidden_layers": config.text_layers,
        "num_key_value_heads": config.text_kv_heads,
        "rms_norm_eps": config.eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }
    vision = {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": config.hidden_size,
        "image_size": config.tile_size,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": config.vision_mlp,
        "layer_norm_eps": config.eps,
        "norm_type": "layer_norm",
        "num_attention_heads": config.vision_heads,
        "num_channels": 3,
        "num_hidden_layers": config.vision_layers,
        "patch_size": config.patch_size,
        "qk_normalization": False,
        "qkv_bias": True,
        "torch_dtype": "bfloat16",
        "use_flash_attn": False,
    }
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": config.tile_size,
        "llm_config": text,
        "max_dynamic_patch": 4,
        "min_dynamic_patch": 1,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_thumbnail": True,
        "vision_config": vision,
    }


def checkpoint_weights(model: DemoModel) -> dict[str, Tensor]:
    """bf16 weights under the original names; the head is tied and not stored."""
    return {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
    }


def export(model: DemoModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes weights, configuration, generation defaults and tokenizer into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(checkpoint_weights(model), folder / "model.safetensors", metadata={"format": "pt"})
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    generation = {
        "do_sample": False,
        "bos_token_id": pad,
        "eos_token_id": [end, pad],
        "pad_token_id": pad,
    }
    write_json(folder / "config.json", model_config(model.config, tokenizer))
    write_json(folder / "generation_config.json", generation)
    save_tokenizer(tokenizer, folder)


def write_json(path: Path, value: object) -> None:
    """Indented JSON with a newline at its end."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
