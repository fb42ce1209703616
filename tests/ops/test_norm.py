"""Norms and the scaled residual: strides, aliasing, rounding and errors."""

import pytest
import torch
from torch import Tensor

from lightvl import ops
from lightvl.testing.compare import DTYPES, assert_close
from lightvl.testing.norm_reference import (
    EPS,
    NormInputs,
    RowsCase,
    add_rms_norm_reference,
    layer_norm_reference,
    make_norm_inputs,
    rms_norm_reference,
    scale_add_reference,
)
from lightvl.testing.poison import gap_is_intact, poisoned

CASE = RowsCase(7, 111)
operators = torch.ops.lightvl


def poisoned_like(x: Tensor) -> Tensor:
    return poisoned(*x.shape, dtype=x.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_the_output_need_not_adjoin(dtype: torch.dtype) -> None:
    i = make_norm_inputs(CASE, dtype)
    calls = (
        (operators.rms_norm, (i.x, i.weight, EPS), rms_norm_reference(i.x, i.weight, EPS)),
        (
            operators.layer_norm,
            (i.x, i.weight, i.bias, EPS),
            layer_norm_reference(i.x, i.weight, i.bias, EPS),
        ),
        (
            operators.scale_add,
            (i.x, i.bias, i.weight, i.residual),
            scale_add_reference(i.x, i.weight, i.residual, i.bias),
        ),
    )
    for operator, arguments, expected in calls:
        out = poisoned_like(i.x)
        operator(*arguments, out)
        assert_close(out, expected)
        assert gap_is_intact(out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_norm_per_head_reads_a_fused_projection(dtype: torch.dtype) -> None:
    packed = make_norm_inputs(RowsCase(33, 64, num_heads=9), dtype).x
    weight = make_norm_inputs(RowsCase(1, 64), dtype).weight
    heads = packed[:, 2:6]
    out = torch.empty(4, 33, 64, dtype=dtype).transpose(0, 1)
    operators.rms_norm(heads, weight, EPS, out)
    assert_close(out, rms_norm_reference(heads, weight, EPS))
    assert_close(ops.rms_norm(heads, weight, EPS), rms_norm_reference(heads, weight, EPS))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_rms_norm_updates_the_residual(dtype: torch.dtype) -> None:
    i = make_norm_inputs(CASE, dtype)
    expected, total = add_rms_norm_reference(i.x, i.residual, i.weight, EPS)
    out = poisoned_like(i.x)
    operators.add_rms_norm(i.x, i.residual, i.weight, EPS, out)
    assert torch.equal(i.residual, total)
    assert gap_is_intact(i.residual)
    assert gap_is_intact(out)
    assert_close(out, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_scale_add_in_place(dtype: torch.dtype, with_bias: bool) -> None:
    i = make_norm_inputs(CASE, dtype)
    bias = i.bias if with_bias else None
    expected = scale_add_reference(i.x, i.weight, i.residual, bias)
    assert_close(ops.scale_add(i.x, i.weight, i.residual, bias), expected)
    assert ops.scale_add(i.x, i.weight, i.residual, bias, out=i.residual) is i.residual
    assert_close(i.residual, expected)


def test_large_and_tiny_rows_keep_their_precision() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 500) * torch.tensor([[1e-12], [1.0], [1e12]]) + 0.0
    weight = torch.ones(500)
    assert_close(ops.rms_norm(x, weight, 1e-30), rms_norm_reference(x, weight, 1e-30))
    shifted = torch.randn(4, 500) + 1000
    expected = layer_norm_reference(shifted, weight, weight, EPS)
    assert_close(ops.layer_norm(shifted, weight, weight, EPS), expected, 1e-5)
    uneven = torch.zeros(2, 8191)  # the worst row for an estimate of the mean by its beginning
    uneven[:, :64] = torch.randn(2, 64) + 1000
    weight = torch.ones(8191)
    expected = layer_norm_reference(uneven, weight, weight, EPS)
    assert_close(ops.layer_norm(uneven, weight, weight, EPS), expected, 1e-4)


def test_threads_do_not_change_the_bits() -> None:
    i = make_norm_inputs(RowsCase(500, 576), torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results.append(ops.layer_norm(i.x, i.weight, i.bias, EPS))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    i: NormInputs = make_norm_inputs(CASE, dtype)
    x, residual, out = i.x.contiguous(), i.residual.contiguous(), torch.zeros(7, 111, dtype=dtype)
    for operator, arguments in (
        (operators.rms_norm, (x, i.weight, EPS, out)),
        (operators.add_rms_norm, (x, residual, i.weight, EPS, out)),
        (operators.layer_norm, (x, i.weight, i.bias, EPS, out)),
        (operators.scale_add, (x, i.bias, i.weight, residual, out)),
        (operators.scale_add, (x, None, i.weight, residual, out)),
    ):
        torch.library.opcheck(operator.default, arguments)


X, W = torch.zeros(7, 111), torch.zeros(111)
OUT = torch.zeros(7, 111)


@pytest.mark.parametrize(
    ("operator", "arguments", "message"),
    [
        ("rms_norm", (X, W[:5], EPS, OUT), r"rms_norm: weight is \[5\], expected \[C=111\]"),
        ("rms_norm", (X, W, EPS, OUT[:3]), r"rms_norm: out is \[3, 111\], expected \[T=7, C=111\]"),
        ("rms_norm", (W, W, EPS, W), r"rms_norm: x is \[111\], expected \[T, C\]"),
        ("rms_norm", (X, W.half(), EPS, OUT), "weight is float16, expected float32"),
        ("rms_norm", (X.long(), W, EPS, OUT), "x is int64, expected float32, bfloat16 or float16"),
        ("rms_norm", (X.T.contiguous().T, W, EPS, OUT), "x must be contiguous in its last"),
        ("add_rms_norm", (X, X[:2], W, EPS, OUT), r"residual is \[2, 111\], expected \[T=7"),
        ("layer_norm", (X, W, W[::2], EPS, OUT), r"bias is \[56\], expected \[C=111\]"),
        ("scale_add", (X, W, W, X.bfloat16(), OUT), "residual is bfloat16, expected float32"),
        ("scale_add", (X, W[1:], W, X, OUT), r"bias is \[110\], expected \[C=111\]"),
    ],
)
def test_wrong_arguments_are_named(
    operator: str, arguments: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(operators, operator)(*arguments)
