"""Rotary variants against `transformers`, within the original context and beyond it."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lightvl.config import Layout
from lightvl.layers.rotary import RotaryEmbedding
from lightvl.model_config import load_model_config
from lightvl.rope_config import load_rope
from lightvl.testing.checkpoints import write_checkpoint
from lightvl.utils.fields import Fields
from tests.models.oracle import reference_greedy
from tests.models.paged_loop import Prompt, greedy
from tests.models.test_internvl import LAYOUTS, load, text_prompt

ORIGINAL = 64
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": YARN,
    "yarn-all": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 0.8},
    "yarn-untruncated": {**YARN, "truncate": False},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
}


def fields(scaling: dict[str, Any] | None, head_dim: int = 32) -> dict[str, Any]:
    return {
        "hidden_size": 4 * head_dim,
        "num_attention_heads": 4,
        "max_position_embeddings": ORIGINAL,
        "rope_theta": 10000.0,
        "rope_scaling": scaling,
    }


def rotary(scaling: dict[str, Any] | None, head_dim: int) -> RotaryEmbedding:
    config = load_rope(Fields(fields(scaling, head_dim), "config.json"), ORIGINAL)
    embedding = RotaryEmbedding(config, head_dim, ORIGINAL)
    embedding.reserve(5 * ORIGINAL)
    return embedding


def reference(scaling: dict[str, Any] | None, head_dim: int) -> LlamaRotaryEmbedding:
    config = LlamaConfig(**fields(dict(scaling) if scaling else None, head_dim))
    embedding: LlamaRotaryEmbedding = LlamaRotaryEmbedding(config)
    return embedding


def lookup(embedding: RotaryEmbedding, positions: list[int], effective: list[int]) -> torch.Tensor:
    cos_sin, rows = embedding.rows(
        torch.tensor(positions, dtype=torch.int32), torch.tensor(effective, dtype=torch.int32)
    )
    assert cos_sin.dtype == torch.float32
    assert rows.dtype == torch.int32
    return cos_sin[rows.long()]


def expect(embedding: LlamaRotaryEmbedding, positions: list[int]) -> torch.Tensor:
    cos, sin = embedding(torch.zeros(1), torch.tensor([positions]))
    half = cos.shape[-1] // 2
    return torch.cat((cos[0, :, :half], sin[0, :, :half]), 1)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("scaling", VARIANTS.values(), ids=VARIANTS)
def test_prefill_then_decode(scaling: dict[str, Any] | None, head_dim: int) -> None:
    ours, theirs = rotary(scaling, head_dim), reference(scaling, head_dim)
    for prompt_len in (ORIGINAL // 2, ORIGINAL, 3 * ORIGINAL):
        positions = list(range(prompt_len))
        actual = lookup(ours, positions, [prompt_len] * prompt_len)
        torch.testing.assert_close(actual, expect(theirs, positions), rtol=1e-6, atol=1e-5)
        for position in range(prompt_len, prompt_len + 5):
            actual = lookup(ours, [position], [position + 1])
            torch.testing.assert_close(actual, expect(theirs, [position]), rtol=1e-6, atol=1e-5)


def test_dynamic_gives_each_sequence_of_a_batch_its_own_base() -> None:
    ours = rotary(VARIANTS["dynamic"], 32)
    positions, effective = [10, 10, 150], [40, 200, 151]
    actual = lookup(ours, positions, effective)
    for i, (position, length) in enumerate(zip(positions, effective, strict=True)):
        theirs = reference(VARIANTS["dynamic"], 32)
        expected = expect(theirs, list(range(length)))[position]
        torch.testing.assert_close(actual[i], expected, rtol=1e-6, atol=1e-5)
    assert not torch.equal(actual[0], actual[1])


@pytest.mark.parametrize("layout", ["original", "native"])
@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_beyond_the_original_context(name: str, layout: Layout, tmp_path: Path) -> None:
    scaling = VARIANTS[name]
    write = partial(write_checkpoint, rope_scaling=scaling, max_position=ORIGINAL, seed=5)
    path = write(tmp_path / "ours", layout=layout)
    native = write(tmp_path / "native", layout="native")
    model = load(path)
    model.rotary.reserve(3 * ORIGINAL)
    prompts = [text_prompt(40), text_prompt(90, seed=1)]
    expected = [reference_greedy(native, Prompt(prompt.ids), 40) for prompt in prompts]
    assert greedy(model, prompts, 40) == expected
    assert greedy(model, prompts, 40, chunk=23) == expected


def test_both_spellings_read_alike(tmp_path: Path) -> None:
    for name, scaling in VARIANTS.items():
        configs = [
            load_model_config(
                write_checkpoint(
                    tmp_path / f"{name}-{layout}",
                    layout=layout,
                    rope_scaling=scaling,
                    max_position=ORIGINAL,
                )
            )
            for layout in LAYOUTS
        ]
        assert configs[0].text == configs[1].text
        old_key = {**scaling, "type": scaling["rope_type"]} if scaling else {}
        old_key.pop("rope_type", None)
        assert load_rope(Fields(fields(old_key), "x"), ORIGINAL) == configs[0].text.rope
