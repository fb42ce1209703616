"""`transformers` on the same checkpoint: the reference of the model tests."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import InternVLForConditionalGeneration

from tests.models.paged_loop import Prompt


@cache
def load_reference(path: Path) -> Any:
    """Returns transformers' model of a checkpoint in the native layout, in float32."""
    model: Any = InternVLForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def reference_logits(path: Path, prompt: Prompt) -> Tensor:
    """Returns the logits [T, V] after every token of the prompt."""
    with torch.inference_mode():
        logits: Tensor = load_reference(path)(**_inputs(prompt)).logits[0]
    return logits


def reference_greedy(path: Path, prompt: Prompt, num_tokens: int) -> list[int]:
    """Returns the prompt's greedy continuation."""
    ids: Tensor = load_reference(path).generate(
        **_inputs(prompt), max_new_tokens=num_tokens, do_sample=False
    )
    continuation: list[int] = ids[0, len(prompt.ids) :].tolist()
    return continuation


def _inputs(prompt: Prompt) -> dict[str, Tensor]:
    ids = torch.tensor([prompt.ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if prompt.patches is not None:
        inputs["pixel_values"] = pixels_of(prompt.patches)
    return inputs


def pixels_of(patches: Tensor) -> Tensor:
    """Returns tiles [B, 3, S, S] for patches [B, Q, 3 * p * p]."""
    side = round(patches.shape[1] ** 0.5)
    size = round((patches.shape[2] // 3) ** 0.5)
    grid = patches.view(-1, side, side, 3, size, size)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, side * size, side * size)
