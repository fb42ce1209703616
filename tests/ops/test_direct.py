"""The way of plain tensors past torch's dispatcher, and what must not take it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from lightvl import ops
from lightvl.ops import norm
from tests.ops.gpu import Calls

direct: Callable[..., Any] = norm._rms_norm
packet = torch.ops.lightvl.rms_norm.default


def arguments(rows: int = 3) -> tuple[Tensor, Tensor, float, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 8, generator=generator)
    return x, torch.randn(8, generator=generator), 1e-6, torch.full((rows, 8), torch.nan)


def error_of(call: Callable[..., Any], *values: object) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call(*values)
    return caught.type, str(caught.value).partition("\n")[0]


def test_both_ways_do_the_same() -> None:
    x, weight, eps, out = arguments()
    expected = torch.full_like(out, torch.nan)
    direct(x, weight, eps, out)
    packet(x, weight, eps, expected)
    assert torch.equal(out, expected)


def test_parameters_and_gradients_are_no_hindrance() -> None:
    x, weight, eps, out = arguments()
    expected = ops.rms_norm(x, weight, eps)
    direct(x.requires_grad_(), torch.nn.Parameter(weight), eps, out)
    assert torch.equal(out, expected)
    assert not out.requires_grad


@pytest.mark.parametrize(
    "values",
    [
        (),
        arguments()[:3],
        (None, *arguments()[1:]),
        (*arguments()[:2], "1e-6", arguments()[3]),
        (3, *arguments()[1:]),
        (arguments()[0].to_sparse(), *arguments()[1:]),
        (arguments()[0], arguments()[1][:5], *arguments()[2:]),
        (arguments()[0].double(), *arguments()[1:]),
        (arguments()[0].bool(), *arguments()[1:]),
    ],
)
def test_errors_are_the_same(values: tuple[object, ...]) -> None:
    assert error_of(direct, *values) == error_of(packet, *values)


def test_a_number_may_be_an_integer() -> None:
    x, weight, _, out = arguments()
    direct(x, weight, 1, out)
    assert torch.equal(out, ops.rms_norm(x, weight, 1.0))


def test_what_torch_negates_lazily_is_resolved_by_the_caller() -> None:
    """But for a private function, what makes such views gives strides that no operator takes."""
    x, weight, eps, out = arguments()
    lazy = torch.complex(x, -x).conj().imag
    assert lazy.is_neg()
    with pytest.raises(ValueError, match="x must be contiguous in its last dimension"):
        direct(lazy, weight, eps, out)
    direct(lazy.contiguous(), weight, eps, out)
    assert torch.equal(out, ops.rms_norm(x, weight, eps))


def test_who_watches_calls_sees_them() -> None:
    x, weight, eps, _ = arguments()
    with Calls() as calls:
        ops.rms_norm(x, weight, eps)
    assert [func for func, _ in calls.made] == [packet]


def test_a_subclass_goes_its_own_way() -> None:
    x, weight, eps, out = arguments()
    seen = []

    class Watching(Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            seen.append(func)
            result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
            return result

    direct(x.as_subclass(Watching), weight, eps, out)
    assert packet in seen
    assert torch.equal(out, ops.rms_norm(x, weight, eps))


def test_tensors_without_memory_have_shapes() -> None:
    x, weight, eps, _ = arguments()
    assert ops.rms_norm(x.to("meta"), weight.to("meta"), eps).shape == x.shape
    with FakeTensorMode() as mode:
        fakes = mode.from_tensor(x), mode.from_tensor(weight)
    assert ops.rms_norm(*fakes, eps).shape == x.shape
