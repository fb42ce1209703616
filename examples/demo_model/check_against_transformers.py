"""Checks that transformers' InternVL gives the same logits from a demo checkpoint.

python check_against_transformers.py FOLDER
"""

import json
import re
import sys
from pathlib import Path

import torch
from model import DemoConfig, DemoModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration

TOWER = "model.vision_tower.embeddings"
RENAMED = (
    (r"^vision_model\.encoder\.layers", "model.vision_tower.encoder.layer"),
    (r"^vision_model\.embeddings\.class_embedding", f"{TOWER}.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding", f"{TOWER}.position_embeddings"),
    (r"^vision_model\.embeddings\.patch_embedding", f"{TOWER}.patch_embeddings.projection"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.ls1$", ".lambda_1"),
    (r"\.ls2$", ".lambda_2"),
    (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    (r"^language_model\.model\.", "model.language_model."),
)  # fmt: skip


def native_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of transformers' own layout."""
    native = {}
    for name, value in weights.items():
        if ".attn.qkv." in name:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                renamed = name.replace(".attn.qkv.", f".attention.{part}_proj.")
                native[rename(renamed)] = piece
        else:
            native[rename(name)] = value
    native["lm_head.weight"] = native["model.language_model.embed_tokens.weight"]
    return native


def rename(name: str) -> str:
    """A weight's name in transformers' layout."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def transformers_model(folder: Path) -> InternVLForConditionalGeneration:
    """Transformers' model with the checkpoint's weights, in float32."""
    config = json.loads((folder / "config.json").read_text())
    text, vision = config["llm_config"], config["vision_config"]
    kept = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    image_id = next(
        token["id"]
        for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
        if token["content"] == "<IMG_CONTEXT>"
    )
    native = InternVLConfig(
        text_config={k: v for k, v in text.items() if k not in {"architectures", "torch_dtype"}},
        vision_config={
            **{k: vision[k] for k in (*kept, "layer_norm_eps", "hidden_act", "norm_type")},
            "attention_bias": vision["qkv_bias"],
            "use_qk_norm": vision["qk_normalization"],
            "image_size": (vision["image_size"],) * 2,
            "patch_size": (vision["patch_size"],) * 2,
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
        },
        image_token_id=image_id,
        image_seq_length=64,
        downsample_ratio=config["downsample_ratio"],
        tie_word_embeddings=True,
    )
    model = InternVLForConditionalGeneration(native).float().eval()
    weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    missing, unexpected = model.load_state_dict(native_weights(weights), strict=False)
    if missing or unexpected:
        raise ValueError(f"weights differ in name: missing {missing}, unexpected {unexpected}")
    return model


def main(folder: Path) -> None:
    """Compares the logits of a random prompt with two pictures."""
    torch.manual_seed(0)
    theirs = transformers_model(folder)
    image_id = theirs.config.image_token_id
    ours = DemoModel(DemoConfig()).eval()
    ours.load_state_dict(load_file(folder / "model.safetensors"))
    ids = torch.randint(0, 2036, (2, 180))
    ids[0, 20:148] = ids[1, 30:158] = image_id
    pixels = torch.randn(4, 3, 224, 224)
    with torch.no_grad():
        want = theirs(input_ids=ids, pixel_values=pixels).logits
        hidden = ours.language_model.model(ours.embed(ids, pixels, image_id))
        error = (ours.head(hidden) - want).norm() / want.norm()
    print(f"relative difference of the logits: {error.item():.2e}")
    if not error < 1e-5:
        raise SystemExit("the two models differ")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
