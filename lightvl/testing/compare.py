"""Comparison with a float64 reference, and the tolerance that each dtype's rounding leaves."""

import torch
from torch import Tensor

# Twice the rounding of one result; float32 leaves room for the sums behind it.
TOLERANCE = {torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = tuple(TOLERANCE)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Check that each element is within `tolerance`, both absolute and relative to the expected.

    Args:
        actual: What an operator gave.
        expected: Its float64 reference, of the same shape.
        tolerance: By default that of actual's dtype.

    Raises:
        AssertionError: Names the worst element, its errors, and the cosine of the whole tensors.
    """
    assert actual.shape == expected.shape, f"{actual.shape} instead of {expected.shape}"
    if actual.numel() == 0:
        return
    limit = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    got, want = actual.double(), expected.double()
    error = (got - want).abs().nan_to_num(torch.inf, torch.inf)
    error = error.masked_fill(got == want, 0.0)  # infinities that agree
    excess = error - limit * (1 + want.abs().nan_to_num(0.0, 0.0, 0.0))
    worst = int(excess.argmax())
    if excess.flatten()[worst] <= 0:
        return
    where = [int(i) for i in torch.unravel_index(torch.tensor(worst), excess.shape)]
    off = float(error.flatten()[worst])
    cosine = torch.nn.functional.cosine_similarity(got.flatten(), want.flatten(), dim=0)
    raise AssertionError(
        f"{int((excess > 0).sum())} of {excess.numel()} elements differ; worst at {where}: "
        f"{float(got.flatten()[worst])} instead of {float(want.flatten()[worst])}, "
        f"absolute {off:.3g}, relative {off / abs(float(want.flatten()[worst]) or 1.0):.3g}, "
        f"cosine {float(cosine):.9f}"
    )
