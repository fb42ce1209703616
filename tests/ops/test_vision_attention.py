"""vision_attention: strides, isolation of segments, threads and errors."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lightvl.ops import vision_attention
from lightvl.testing.attention_reference import (
    VISION_CASES,
    VisionCase,
    make_vision_inputs,
    vision_attention_reference,
)
from lightvl.testing.compare import assert_close
from lightvl.testing.poison import gap_is_intact, poisoned


def test_any_order_of_dimensions_in_the_output() -> None:
    inputs = make_vision_inputs(VisionCase((257, 5)), torch.float32)
    tokens, heads, dim = inputs.q.shape
    out = poisoned(heads, tokens, dim, dtype=torch.float32)
    torch.ops.lightvl.vision_attention(*inputs.arguments(), out.transpose(0, 1))
    assert_close(out.transpose(0, 1), vision_attention_reference(inputs))
    assert gap_is_intact(out)


def test_large_scores_do_not_overflow() -> None:
    inputs = replace(make_vision_inputs(VisionCase((130,)), torch.float32), scale=100.0)
    out = vision_attention(*inputs.arguments())
    assert_close(out, vision_attention_reference(inputs), 1e-3)


def test_no_segment() -> None:
    inputs = make_vision_inputs(VISION_CASES[-1], torch.float32)
    assert vision_attention(*inputs.arguments()).shape == (0, 4, 64)


def test_segments_do_not_see_each_other() -> None:
    inputs = make_vision_inputs(VisionCase((257, 100)), torch.float32)
    together = vision_attention(*inputs.arguments())
    inputs.k[257:] = torch.nan
    inputs.v[257:] = torch.nan
    assert torch.equal(vision_attention(*inputs.arguments())[:257], together[:257])


def test_threads_do_not_change_the_bits() -> None:
    inputs = make_vision_inputs(VisionCase((257, 1025)), torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            results.append(vision_attention(*inputs.arguments()))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_opcheck() -> None:
    inputs = make_vision_inputs(VisionCase((17, 5)), torch.float32)
    operator = torch.ops.lightvl.vision_attention.default
    torch.library.opcheck(operator, (*inputs.arguments(), torch.empty(22, 4, 64)))


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


WRONG: dict[str, dict[str, Any]] = {
    "k is .*expected": {"k": torch.zeros(21, 4, 64)},
    "v is float16, expected float32": {"v": torch.zeros(22, 4, 64).half()},
    "head dim must be a multiple of 8": dict.fromkeys("qkv", torch.zeros(22, 4, 12)),
    "q must be contiguous in its last": {"q": torch.zeros(22, 64, 4).transpose(1, 2)},
    "cu_lens must run from 0": {"cu_lens": int32(0, 17, 21)},
    "cu_lens must ascend": {"cu_lens": int32(0, 23, 22)},
    "by at most max_len": {"max_len": 16},
    "cu_lens is int64": {"cu_lens": torch.tensor([0, 17, 22])},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    inputs = make_vision_inputs(VisionCase((17, 5)), torch.float32)
    with pytest.raises(ValueError, match=f"vision_attention: .*{message}"):
        vision_attention(*replace(inputs, **WRONG[message]).arguments())
