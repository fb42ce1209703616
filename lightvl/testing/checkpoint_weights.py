"""Random weights of tiny InternVL checkpoints, under either layout's names, for the tests.

They are made once under the native layout's names and renamed for the original one, so that the
same seed gives the same model in either layout; `internlm2` is `llama` regrouped. The
initialisation is raised far above a trained model's, or greedy text would repeat one token.
"""

import re
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


def random_tensors(
    text: dict[str, Any], tower: dict[str, Any], seed: int, std: float = 0.2
) -> Tensors:
    """Returns float32 weights under the native layout's names on disk."""
    generator = torch.Generator().manual_seed(seed)

    def fill(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        noise = torch.randn(shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            return 1 + 0.2 * noise
        if "lambda" in name:
            return 0.5 + 0.1 * noise
        return std * noise

    shapes = _vision_shapes(tower) | _projector_shapes(text, tower) | _text_shapes(text)
    return {name: fill(name, shape) for name, shape in shapes.items()}


def to_original_names(tensors: Tensors, text: dict[str, Any]) -> Tensors:
    """Returns native weights under the original layout's names, stacked and grouped as there."""
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
        if match := re.fullmatch(r"(language_model.+)\.self_attn\.q_proj\.(\w+)", name):
            parts = [tensors[f"{match[1]}.self_attn.{x}_proj.{match[2]}"] for x in "qkv"]
            head_dim = parts[1].shape[0] // num_kv_heads
            heads = [x.view(num_kv_heads, -1, head_dim, *x.shape[1:]) for x in parts]
            renamed[f"{match[1]}.attention.wqkv.{match[2]}"] = torch.cat(heads, 1).flatten(0, 2)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            renamed[_rename(name, _INTERNLM2_NAMES)] = tensor
    return renamed


def _vision_shapes(tower: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, ffn = tower["hidden_size"], tower["intermediate_size"]
    patch_size = tower["patch_size"]
    num_patches = (tower["image_size"] // patch_size) ** 2
    embeddings = "vision_tower.embeddings."
    shapes: dict[str, tuple[int, ...]] = {
        f"{embeddings}cls_token": (1, 1, width),
        f"{embeddings}position_embeddings": (1, 1 + num_patches, width),
        f"{embeddings}patch_embeddings.projection.weight": (width, 3, patch_size, patch_size),
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
    bias = text.get("attention_bias", text.get("bias", False))
    mlp_bias = text.get("mlp_bias", False)
    model = "language_model.model."
    shapes: dict[str, tuple[int, ...]] = {
        f"{model}embed_tokens.weight": (text["vocab_size"], hidden),
        f"{model}norm.weight": (hidden,),
    }
    for i in range(text["num_hidden_layers"]):
        layer = f"{model}layers.{i}."
        for part, width in widths.items():
            qkv_bias = bias or text["model_type"] == "qwen2"
            shapes |= _linear(f"{layer}self_attn.{part}_proj", width, hidden, qkv_bias)
        shapes |= _linear(f"{layer}self_attn.o_proj", hidden, widths["q"], bias)
        if text["model_type"] == "qwen3":
            shapes[f"{layer}self_attn.q_norm.weight"] = (head_dim,)
            shapes[f"{layer}self_attn.k_norm.weight"] = (head_dim,)
        shapes |= _linear(f"{layer}mlp.gate_proj", ffn, hidden, mlp_bias)
        shapes |= _linear(f"{layer}mlp.up_proj", ffn, hidden, mlp_bias)
        shapes |= _linear(f"{layer}mlp.down_proj", hidden, ffn, mlp_bias)
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
