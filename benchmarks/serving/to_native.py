"""Writes a checkpoint of the original layout again in transformers' own, for the comparison.

Covers the language models that transformers has: qwen2, qwen3 and llama.

    python -m benchmarks.serving.to_native MODEL_DIR OUT
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lightvl.model_config import load_model_config
from lightvl.models.internvl import InternVLModel
from lightvl.models.names import NATIVE_VISION, TEXT, find_source, layout_rules
from lightvl.testing.checkpoints import write_model

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
IMG_CONTEXT = "<IMG_CONTEXT>"


def to_native(model_dir: Path, out: Path) -> Path:
    """Writes the same weights under the native layout's names and configuration.

    Args:
        model_dir: A checkpoint of the original layout.
        out: Directory, made if absent.

    Returns:
        `out`.

    Raises:
        ValueError: transformers has no such language model.
    """
    config = json.loads((model_dir / "config.json").read_text())
    text, tower = config["llm_config"], config["vision_config"]
    if text["model_type"] == "internlm2":
        raise ValueError("internlm2 exists in the original layout alone")
    write_model(
        out,
        "native",
        {"torch_dtype": config["torch_dtype"], **text},
        tower | {"image_size": config["force_image_size"]},
        native_tensors(model_dir),
        image_token_id=image_token_id(model_dir),
        rope_scaling=text.get("rope_scaling"),
    )
    for name in TOKENIZER_FILES:
        shutil.copy(model_dir / name, out / name)
    return out


def native_tensors(model_dir: Path) -> dict[str, Tensor]:
    """Returns the weights by native name, each taken as the loader takes it for a slot."""
    config = load_model_config(model_dir)
    stored: dict[str, Tensor] = {}
    for file in sorted(model_dir.glob("*.safetensors")):
        stored |= load_file(file)
    with torch.device("meta"):
        slots = InternVLModel(config).all_slots()
    tensors = {}
    for path in slots:
        source = find_source(layout_rules(config), path)
        tensor = stored[source.name]
        native = find_source(NATIVE_VISION + TEXT, path)
        tensors[native.name] = tensor if source.take is None else source.take(tensor)
    return tensors


def image_token_id(model_dir: Path) -> int:
    """Returns the id of `<IMG_CONTEXT>` in the checkpoint's vocabulary."""
    tokenizer: dict[str, Any] = json.loads((model_dir / "tokenizer.json").read_text())
    added = {token["content"]: int(token["id"]) for token in tokenizer["added_tokens"]}
    return added[IMG_CONTEXT]


def main() -> None:
    """Reads the arguments and writes the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    print(to_native(arguments.model_dir, arguments.out))


if __name__ == "__main__":
    main()
