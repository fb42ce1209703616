"""Matrix products, alone or several fused into one weight."""

import torch
from torch import Tensor

from lightvl.layers.layer import Layer, Slot, new_weight


class Linear(Layer):
    """`x @ weight.T + bias`.

    The weight is kept transposed, [in, out], which MKL reads faster for the few rows of a decode
    step and which saves a call into torch; `weight` is a view of it in the checkpoints' shape.

    Args:
        in_size: Columns of the weight.
        out_size: Rows of the weight.
        bias: Whether there is one.
    """

    def __init__(self, in_size: int, out_size: int, *, bias: bool) -> None:
        self.transposed = new_weight(in_size, out_size)
        self.weight = self.transposed.t()
        self.bias = new_weight(out_size) if bias else None

    def slots(self) -> dict[str, Slot]:
        """Returns `weight` and, if there is one, `bias`."""
        slots = {"weight": Slot(self.weight)}
        return slots if self.bias is None else slots | {"bias": Slot(self.bias)}

    def __call__(self, x: Tensor) -> Tensor:
        """Returns [T, out] for x [T, in]."""
        if self.bias is None:
            return torch.mm(x, self.transposed)
        return torch.addmm(self.bias, x, self.transposed)

    def product(self, x: Tensor) -> Tensor:
        """Returns the product without the bias, for callers that add it in the next operator."""
        return torch.mm(x, self.transposed)


class MergedLinear(Linear):
    """Several products of the same input with one weight; their outputs lie side by side.

    Args:
        in_size: Columns of the weight.
        parts: Rows of each part, by its name in slots.
        bias: Whether there is one.
    """

    def __init__(self, in_size: int, parts: dict[str, int], *, bias: bool) -> None:
        super().__init__(in_size, sum(parts.values()), bias=bias)
        self.parts = parts

    def slots(self) -> dict[str, Slot]:
        """Returns `<part>.weight` and `<part>.bias` of each part."""
        slots = {}
        start = 0
        for name, size in self.parts.items():
            slots[f"{name}.weight"] = Slot(self.weight[start : start + size])
            if self.bias is not None:
                slots[f"{name}.bias"] = Slot(self.bias[start : start + size])
            start += size
        return slots
