"""Activations: strides, aliasing, tails and errors."""

import pytest
import torch

from lightvl import ops
from lightvl.testing.activation_reference import gelu_reference, silu_mul_reference
from lightvl.testing.compare import DTYPES, assert_close
from lightvl.testing.norm_reference import RowsCase, make_norm_inputs
from lightvl.testing.poison import gap_is_intact, poisoned

operators = torch.ops.lightvl


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_the_output_need_not_adjoin(dtype: torch.dtype) -> None:
    i = make_norm_inputs(RowsCase(7, 222), dtype)
    out = poisoned(7, 111, dtype=dtype)
    operators.silu_mul(i.x, out)
    assert_close(out, silu_mul_reference(i.x))
    assert gap_is_intact(out)
    out = poisoned(7, 222, dtype=dtype)
    operators.gelu(i.x, i.bias, out)
    assert_close(out, gelu_reference(i.x, i.bias))
    assert gap_is_intact(out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_gelu_in_place(dtype: torch.dtype, with_bias: bool) -> None:
    i = make_norm_inputs(RowsCase(5, 500), dtype)
    bias = i.bias if with_bias else None
    expected = gelu_reference(i.x, bias)
    assert_close(ops.gelu(i.x, bias), expected)
    assert ops.gelu(i.x, bias, out=i.x) is i.x
    assert_close(i.x, expected)
    assert gap_is_intact(i.x)


def test_tails() -> None:
    far = torch.tensor([-1e30, -200.0, 200.0, 1e30])
    x = torch.cat((torch.linspace(-12, 12, 10001), far))[None]
    relative = ops.gelu(x).double() / gelu_reference(x) - 1
    assert relative[:, (x[0] > -9) & (x[0] != 0)].abs().max() < 6e-6
    assert_close(ops.gelu(x), gelu_reference(x))
    wide = torch.linspace(-200, 200, 10001)[None]
    gate_up = torch.cat((wide, torch.ones_like(wide)), dim=1)
    assert_close(ops.silu_mul(gate_up), silu_mul_reference(gate_up))


def test_nan_and_infinity_are_not_hidden() -> None:
    x = torch.tensor([[torch.nan, torch.inf, 1.0, 1.0]])
    out = ops.silu_mul(x)
    assert out[0, 0].isnan()
    assert out[0, 1] == torch.inf
    assert ops.gelu(x)[0, 0].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    x, bias = torch.randn(3, 8).to(dtype), torch.randn(8).to(dtype)
    torch.library.opcheck(operators.silu_mul.default, (x, torch.zeros(3, 4, dtype=dtype)))
    torch.library.opcheck(operators.gelu.default, (x, bias, torch.zeros_like(x)))
    torch.library.opcheck(operators.gelu.default, (x, None, torch.zeros_like(x)))


def test_wrong_arguments_are_named() -> None:
    x = torch.zeros(3, 9)
    with pytest.raises(ValueError, match=r"silu_mul: gate_up is \[3, 9\], expected \[T=3, 8\]"):
        ops.silu_mul(x)
    with pytest.raises(ValueError, match=r"gelu: bias is \[3\], expected \[C=9\]"):
        ops.gelu(x, torch.zeros(3))
    with pytest.raises(ValueError, match="gelu: out is float16, expected float32"):
        ops.gelu(x, out=x.half())
