"""Outputs that the caller brings: written to and handed back, by every typed function."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lightvl import ops
from lightvl.testing.cases import OPERATORS
from lightvl.testing.norm_reference import EPS
from tests.ops.gpu import larger_case, needs_gpu, to_gpu

# With the inputs that OPERATORS makes.
CALLS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "rms_norm": lambda i: partial(ops.rms_norm, i.x, i.weight, EPS),
    "add_rms_norm": lambda i: partial(ops.add_rms_norm, i.x, i.residual, i.weight, EPS),
    "layer_norm": lambda i: partial(ops.layer_norm, i.x, i.weight, i.bias, EPS),
    "scale_add": lambda i: partial(ops.scale_add, i.x, i.weight, i.residual, i.bias),
    "silu_mul": lambda i: partial(ops.silu_mul, i),
    "gelu": lambda i: partial(ops.gelu, i.x, i.bias),
    "gather_embeddings": lambda i: partial(ops.gather_embeddings, *i.arguments()),
    "sample": lambda i: partial(ops.sample, i[0], replace(i[1], logprobs=True, num_top=2)),
    "paged_attention": lambda i: partial(ops.paged_attention, *i.arguments(), lse=True),
    "vision_attention": lambda i: partial(ops.vision_attention, *i.arguments()),
    "image_preprocess": lambda i: partial(ops.image_preprocess, *i.arguments()),
}


def make_call(name: str, device: str = "cpu") -> Callable[..., Any]:
    operator = OPERATORS[name]
    if device == "cuda":
        return CALLS[name](to_gpu(operator.make(larger_case(name), torch.bfloat16)))
    return CALLS[name](operator.make(operator.cases[1], torch.float32))


def parts(result: Any) -> list[Tensor]:
    if isinstance(result, ops.SampleResult):
        result = (result.ids, result.logprobs, result.top_ids, result.top_logprobs)
    return list(result) if isinstance(result, tuple) else [result]


def test_every_function_that_returns_tensors_is_tried() -> None:
    assert CALLS.keys() == OPERATORS.keys() - {"rope_write_kv"}  # it writes to its arguments


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("name", CALLS)
def test_what_is_given_is_written_and_returned(name: str, device: str) -> None:
    expected, out = make_call(name, device)(), make_call(name, device)()
    for x in parts(out):
        x.fill_(torch.nan if x.is_floating_point() else 99)
    assert make_call(name, device)(out=out) is out
    for x, y in zip(parts(out), parts(expected), strict=True):
        assert torch.equal(x, y)


def test_a_result_must_have_what_is_asked_for() -> None:
    logits, params = OPERATORS["sample"].make(OPERATORS["sample"].cases[1], torch.float32)
    plain, told = replace(params, logprobs=False, num_top=0), replace(params, logprobs=True)
    with pytest.raises(ValueError, match="sample: out has other log-probabilities than params"):
        ops.sample(logits, told, out=ops.sample(logits, plain))
    with pytest.raises(ValueError, match="sample: out has other log-probabilities than params"):
        ops.sample(logits, replace(plain, num_top=3), out=ops.sample(logits, plain))


def test_attention_writes_log_sums_where_it_is_given_two_tensors() -> None:
    call = make_call("paged_attention")
    with pytest.raises(ValueError, match="paged_attention: out is a tuple of two with lse"):
        call(out=call()[0])


def test_pictures_are_written_in_the_dtype_that_is_asked_for() -> None:
    call = make_call("image_preprocess")
    with pytest.raises(ValueError, match=r"out is torch.float16, expected torch.float32"):
        call(out=call().half())
