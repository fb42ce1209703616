"""Norms with their fused residuals."""

import torch
from torch import Tensor

from lightvl.ops.library import out_operator

_rms_norm = out_operator("rms_norm")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row to unit root mean square, then by `weight`.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.

    Args:
        x: [T, C], or [T, H, C] for a norm per head; row-strided; float32, bfloat16 or float16.
        weight: [C], dtype of x, contiguous.
        eps: added to the mean square.

    Returns:
        Shape and dtype of x.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _rms_norm(x, weight, eps, out)
    return out
