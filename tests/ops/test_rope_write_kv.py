"""Rotary embedding with its page write: caches, untouched slots and errors."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lightvl import ops
from lightvl.testing.compare import DTYPES, assert_close
from lightvl.testing.rotary_reference import (
    ROPE_CASES,
    RopeCase,
    RopeInputs,
    make_rope_inputs,
    rope_write_kv_reference,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ROPE_CASES, ids=str)
def test_writes_the_slots_and_nothing_else(case: RopeCase, dtype: torch.dtype) -> None:
    inputs = make_rope_inputs(case, dtype)
    q, k_cache, v_cache = rope_write_kv_reference(inputs)
    k, v = inputs.k.clone(), inputs.v.clone()
    ops.rope_write_kv(*inputs.arguments())
    assert_close(inputs.q, q)
    assert torch.equal(inputs.k, k)
    assert torch.equal(inputs.v, v)
    written = ~k_cache.isnan()
    assert torch.equal(~inputs.k_cache.isnan(), written)
    assert_close(inputs.k_cache[written], k_cache[written])
    assert torch.equal(inputs.v_cache.double().nan_to_num(7), v_cache.nan_to_num(7))


def test_position_zero_does_not_rotate() -> None:
    inputs = make_rope_inputs(RopeCase(5), torch.float32)
    still = torch.cat((torch.ones(99, 32), torch.zeros(99, 32)), dim=1)
    inputs = replace(inputs, cos_sin=still)
    before = inputs.q.clone()
    ops.rope_write_kv(*inputs.arguments())
    assert torch.equal(inputs.q, before)


def test_opcheck() -> None:
    inputs = make_rope_inputs(RopeCase(5, qk_norm=True), torch.float32)
    inputs.k_cache.nan_to_num_()
    inputs.v_cache.nan_to_num_()
    inputs = replace(inputs, q=inputs.q.contiguous())
    torch.library.opcheck(torch.ops.lightvl.rope_write_kv.default, inputs.arguments())


WRONG: dict[str, dict[str, Any]] = {
    r"k is \[5, 2, 32\], expected \[T=5, K, D=64\]": {"k": torch.zeros(5, 2, 32)},
    r"v is \[5, 3, 64\], expected \[T=5, K=2, D=64\]": {"v": torch.zeros(5, 3, 64)},
    r"cos_sin is \[9, 32\], expected \[R, D=64\]": {"cos_sin": torch.zeros(9, 32)},
    "cos_sin is float16, expected float32": {"cos_sin": torch.zeros(9, 64).half()},
    "rows is int64, expected int32": {"rows": torch.zeros(5, dtype=torch.int64)},
    "rows has 9 at 1, expected 0 to 8": {
        "rows": torch.tensor([0, 9, 0, 0, 0], dtype=torch.int32),
        "cos_sin": torch.zeros(9, 64),
    },
    "slots has -2 at 4, expected -1 to": {"slots": torch.tensor([0, 1, 2, 3, -2])},
    "slots has 128 at 0, expected -1 to 127": {"slots": torch.tensor([128, 1, 2, 3, 4])},
    r"k_cache is \[2, 3, 64, 64\], expected \[N, K=2, P, D=64\]": {
        "k_cache": torch.zeros(2, 3, 64, 64)
    },
    "v_cache must be contiguous": {"v_cache": torch.zeros(2, 64, 2, 64).transpose(1, 2)},
    r"q_norm is \[4\], expected \[D=64\]": {"q_norm": torch.zeros(4)},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    inputs: RopeInputs = make_rope_inputs(RopeCase(5), torch.float32)
    with pytest.raises(ValueError, match=f"rope_write_kv: {message}"):
        ops.rope_write_kv(*replace(inputs, **WRONG[message]).arguments())


def test_odd_head_dim_is_refused() -> None:
    wrong: dict[str, Any] = dict.fromkeys("qkv", torch.zeros(5, 2, 7))
    caches: dict[str, Any] = dict.fromkeys(("k_cache", "v_cache"), torch.zeros(2, 2, 64, 7))
    inputs = make_rope_inputs(RopeCase(5), torch.float32)
    inputs = replace(inputs, **wrong, **caches, cos_sin=torch.zeros(99, 7))
    with pytest.raises(ValueError, match="head dim D must be even"):
        ops.rope_write_kv(*inputs.arguments())
