"""linear_small: the reference's cases on a GPU, strides, aliasing, rows that stay alone, errors."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightvl.ops import linear_small, prefers_linear_small
from lightvl.testing.cases import CUDA_OPERATORS
from lightvl.testing.compare import TOLERANCE, assert_close
from lightvl.testing.linear_reference import (
    LINEAR_CASES,
    LinearCase,
    LinearInputs,
    linear_small_reference,
    make_linear_inputs,
)
from lightvl.testing.poison import gap_is_intact, poisoned, poisoned_memory

operator = torch.ops.lightvl.linear_small
HALF_DTYPES = (torch.bfloat16, torch.float16)
BUILT = torch._C._dispatch_has_kernel_for_dispatch_key("lightvl::linear_small", "CUDA")


def on_gpu(test: Any) -> Any:
    """Marks a test that runs the kernel."""
    test = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")(test)
    test = pytest.mark.skipif(not BUILT, reason="this build has no CUDA kernels")(test)
    return pytest.mark.gpu(test)


def moved(x: Tensor | None) -> Tensor | None:
    """The tensor on the GPU with its strides and all that lies between its elements."""
    if x is None:
        return None
    whole = x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    return whole.cuda().as_strided(x.shape, x.stride(), x.storage_offset())


def to_gpu(inputs: LinearInputs) -> LinearInputs:
    tensors: dict[str, Any] = {
        field.name: moved(getattr(inputs, field.name))
        for field in fields(inputs)
        if field.name != "silu_mul"
    }
    torch.cuda.synchronize()  # the weight is read before the preceding kernel has ended
    return replace(inputs, **tensors)


def run(i: LinearInputs) -> Tensor:
    return CUDA_OPERATORS["linear_small"].run(i)


@on_gpu
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
@pytest.mark.parametrize("case", LINEAR_CASES, ids=str)
def test_equals_the_reference(case: LinearCase, dtype: torch.dtype) -> None:
    inputs = make_linear_inputs(case, dtype)
    expected = linear_small_reference(inputs)
    on_device = to_gpu(inputs)
    with poisoned_memory():
        actual = run(on_device).cpu()
    assert_close(actual, expected, TOLERANCE[dtype])


@on_gpu
@pytest.mark.parametrize(
    ("num_tokens", "out_width"),
    [(n, 700) for n in range(1, 17)]
    + [(n, width) for n in (1, 8, 9) for width in (2000, 3584, 4608, 6000)],
)
def test_a_row_does_not_depend_on_the_others(num_tokens: int, out_width: int) -> None:
    inputs = to_gpu(make_linear_inputs(LinearCase(16, 3000, out_width, bias=True), torch.bfloat16))
    some = run(replace(inputs, x=inputs.x[:num_tokens]))
    assert torch.equal(some, run(inputs)[:num_tokens])
    assert torch.equal(some[-1:], run(replace(inputs, x=inputs.x[num_tokens - 1 : num_tokens])))


@on_gpu
@pytest.mark.parametrize("silu_mul", [False, True])
def test_the_residual_is_updated_in_place(silu_mul: bool) -> None:
    case = LinearCase(11, 1504, 333, silu_mul=silu_mul, bias=True, residual=True)
    inputs = make_linear_inputs(case, torch.bfloat16)
    assert inputs.residual is not None
    residual = poisoned(11, 333, dtype=torch.bfloat16)
    inputs = replace(inputs, residual=residual.copy_(inputs.residual))
    expected = linear_small_reference(inputs)
    i = to_gpu(inputs)
    assert i.residual is not None
    operator(i.x, i.weight, i.bias, i.residual, i.silu_mul, i.residual)
    assert_close(i.residual.cpu(), expected)
    assert gap_is_intact(i.residual)


@on_gpu
def test_a_chain_in_a_graph_waits_for_what_it_reads() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(2048, 2048, generator=generator) / 2048**0.5 for _ in range(20)]
    x = torch.randn(4, 2048, generator=generator).half()
    on_device = [weight.half().cuda() for weight in weights]
    y = x.cuda()
    linear_small(y, on_device[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = y
        for weight in on_device:
            out = linear_small(out, weight, residual=out)
    expected = x
    for weight in weights:
        product = expected.double() @ weight.half().double().t()
        expected = (product + expected.double()).half()
    for _ in range(10):
        out.fill_(torch.nan)
        graph.replay()
        scale = expected.double().abs().max()
        assert_close(out.cpu() / scale.half(), expected.double() / scale, 4e-3)


def test_wrong_arguments_are_named() -> None:
    x, weight = torch.zeros(3, 16).half(), torch.zeros(6, 16).half()
    with pytest.raises(ValueError, match=r"weight is \[6, 16\], expected \[8, C=16\]"):
        operator(x, weight, None, None, True, torch.zeros(3, 4).half())
    with pytest.raises(ValueError, match=r"bias is \[3\], expected \[6\]"):
        linear_small(x, weight, torch.zeros(3).half(), silu_mul=True)
    with pytest.raises(ValueError, match=r"residual is \[3, 5\], expected \[T=3, F=6\]"):
        linear_small(x, weight, residual=torch.zeros(3, 5).half())
    with pytest.raises(ValueError, match="weight is bfloat16, expected float16"):
        linear_small(x, weight.bfloat16())
    with pytest.raises(ValueError, match="x must have at most 16 rows"):
        linear_small(torch.zeros(17, 16).half(), weight)
    with pytest.raises(ValueError, match="width must be a multiple of 8"):
        linear_small(torch.zeros(3, 24).half()[:, :12], torch.zeros(6, 24).half()[:, :12])
    with pytest.raises(ValueError, match="x must have rows that begin at multiples of 16 bytes"):
        linear_small(torch.zeros(3, 20).half()[:, :16], weight)
    with pytest.raises(ValueError, match="float32 is not supported"):
        linear_small(x.float(), weight.float())


def test_what_is_taken_is_preferred() -> None:
    assert prefers_linear_small(1, 3584)
    assert prefers_linear_small(16, 896)
    assert not prefers_linear_small(17, 896)
    assert not prefers_linear_small(0, 896)
    assert not prefers_linear_small(4, 900)


def test_the_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="runs on a GPU only"):
        linear_small(torch.zeros(3, 16).half(), torch.zeros(6, 16).half())


def test_no_rows() -> None:
    x, weight = torch.zeros(0, 16).half(), torch.zeros(6, 16).half()
    assert linear_small(x, weight).shape == (0, 6)
    assert linear_small(x, weight, silu_mul=True).shape == (0, 3)


@on_gpu
def test_opcheck() -> None:
    i = to_gpu(make_linear_inputs(LinearCase(3, 64, 48, bias=True, residual=True), torch.float16))
    out = torch.zeros(3, 48, dtype=torch.float16, device="cuda")
    torch.library.opcheck(operator.default, (i.x, i.weight, i.bias, i.residual, False, out))
