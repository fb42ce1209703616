"""What all layers share: they own weights and say where a checkpoint's tensors go in them.

Layers are plain classes rather than `torch.nn.Module`s: they never train, and a decode step of a
small model is a few hundred calls whose Python cost is felt.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """Room for one tensor of a checkpoint.

    Attributes:
        weight: The room: a weight or a view of a part of one.
        shape: The tensor's shape in the checkpoint, when it isn't the room's.
        arrange: Brings such a tensor into the room's shape.
    """

    weight: Tensor
    shape: tuple[int, ...] | None = None
    arrange: Callable[[Tensor], Tensor] | None = None

    @property
    def expected_shape(self) -> tuple[int, ...]:
        """The shape that the checkpoint's tensor must have."""
        return tuple(self.weight.shape) if self.shape is None else self.shape

    def fill(self, tensor: Tensor) -> None:
        """Copies a tensor of `expected_shape` in, cast to the weight's dtype."""
        self.weight.copy_(tensor if self.arrange is None else self.arrange(tensor))


class Layer:
    """Base of layers and models; children are found in attributes and lists of layers."""

    def slots(self) -> dict[str, Slot]:
        """Returns this layer's own slots by name, without its children's."""
        return {}

    def all_slots(self, prefix: str = "") -> dict[str, Slot]:
        """Returns every slot below this layer by its dotted path."""
        found = {f"{prefix}{name}": slot for name, slot in self.slots().items()}
        for name, child in self._children():
            found |= child.all_slots(f"{prefix}{name}.")
        return found

    def _children(self) -> Iterator[tuple[str, "Layer"]]:
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, list):
                for i, item in enumerate(value):
                    if isinstance(item, Layer):
                        yield f"{name}.{i}", item


def new_weight(*shape: int) -> Tensor:
    """Returns an uninitialised weight with torch's default dtype and device."""
    return torch.empty(shape)
