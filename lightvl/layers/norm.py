"""Norm layers."""

from torch import Tensor

from lightvl import ops
from lightvl.layers.layer import Layer, Slot, new_weight


class RMSNorm(Layer):
    """Scales rows to unit root mean square, then by a weight."""

    def __init__(self, size: int, eps: float) -> None:
        self.weight = new_weight(size)
        self.eps = eps

    def slots(self) -> dict[str, Slot]:
        """Returns `weight`."""
        return {"weight": Slot(self.weight)}

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the norm of x [..., C]."""
        return ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Adds x [T, C] to `residual` in place and returns the sum's norm."""
        return ops.add_rms_norm(x, residual, self.weight, self.eps)


class LayerNorm(Layer):
    """Scales rows to zero mean and unit variance, then by a weight, and adds a bias."""

    def __init__(self, size: int, eps: float) -> None:
        self.weight = new_weight(size)
        self.bias = new_weight(size)
        self.eps = eps

    def slots(self) -> dict[str, Slot]:
        """Returns `weight` and `bias`."""
        return {"weight": Slot(self.weight), "bias": Slot(self.bias)}

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the norm of x [T, C]."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)
