"""vision_attention against float64, on views of a packed projection."""

from dataclasses import replace

import pytest
import torch

from lightvl.ops import vision_attention
from lightvl.testing.attention_reference import (
    VISION_CASES,
    VisionCase,
    make_vision_inputs,
    vision_attention_reference,
)

TOLERANCE = {torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = tuple(TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", VISION_CASES, ids=str)
def test_equals_float64(case: VisionCase, dtype: torch.dtype) -> None:
    inputs = make_vision_inputs(case, dtype)
    tokens, heads, dim = inputs.q.shape
    out = torch.full((heads, tokens, dim), torch.nan, dtype=dtype).transpose(0, 1)
    torch.ops.lightvl.vision_attention(*inputs.arguments(), out)
    if tokens == 0:
        return
    expected = vision_attention_reference(inputs)
    torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(vision_attention(*inputs.arguments()), out)


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


WRONG = {
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
