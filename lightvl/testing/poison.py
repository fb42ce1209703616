"""Memory full of NaN around and under an operator's tensors: a slip of one element shows."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

GAP = 3


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill new floating tensors with NaN, so that an output's missed element shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    """Return a row-strided tensor full of NaN, for an operator to write to."""
    return torch.full((*shape[:-1], shape[-1] + GAP), torch.nan, dtype=dtype)[..., : shape[-1]]


def strided(x: Tensor) -> Tensor:
    """Return a row-strided copy of x with NaN between its rows."""
    copy = poisoned(*x.shape, dtype=x.dtype)
    copy.copy_(x)
    return copy


def gap_is_intact(x: Tensor) -> bool:
    """Whether what lies between the rows of a poisoned tensor is still NaN."""
    whole = x.as_strided((*x.shape[:-1], x.shape[-1] + GAP), x.stride(), x.storage_offset())
    return bool(whole[..., x.shape[-1] :].isnan().all())
