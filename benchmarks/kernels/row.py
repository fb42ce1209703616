"""A row of the comparison: one operator on one shape, with what it must and could cost."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from benchmarks.kernels.timing import Prepared

SPREAD = 0.03  # of two runs of the same kernel


@dataclass(frozen=True)
class Target:
    """What a row aims at.

    Attributes:
        us: Its time on the GPU that the targets were set on.
        best_us: The best peer's there: what counts is the ratio of the two, in any other run. None
            where the aim is a share of the floor.
        share_of_floor: That share.
    """

    us: float | None = None
    best_us: float | None = None
    share_of_floor: float | None = None

    def ratio(self) -> float | None:
        """The best peer's time over ours to reach, or None."""
        return self.best_us / self.us if self.us and self.best_us else None

    def met(self, ratio: float | None, share_of_floor: float) -> bool | None:
        """Whether a measured row reaches it; None where it can't be told."""
        if self.share_of_floor is not None:
            return share_of_floor >= self.share_of_floor * (1 - SPREAD)
        aim = self.ratio()
        return None if aim is None or ratio is None else ratio >= aim * (1 - SPREAD)


@dataclass(frozen=True)
class Row:
    """How one row is measured; `make` gives the inputs that all implementations take.

    Attributes:
        group: Table that it belongs to, such as decode.
        operator: Our operator.
        shape: In words.
        target: Its aim, or None.
        num_bytes: What must be moved at least.
        num_flops: Operations of its matrix products.
        rate: Whether the bytes are mostly read or read and written.
        set_bytes: Of one set of inputs and outputs.
        make: Makes a set.
        check: Takes a set and returns the function that gives an output's error.
        tolerance: Largest error of ours; peers' are told and not judged.
        ours: Prepares our operator on a set.
        cold: Empty the cache before each call instead of rotating sets.
        in_place: The call changes its inputs, so that it can't be checked after it was timed.
        most_sets: Bound of the rotated sets.
        quick: Whether a quick run has it.
        peer_check: As `check` for the peers, where they need not agree with ours.
    """

    group: str
    operator: str
    shape: str
    target: Target | None
    num_bytes: int
    num_flops: int
    rate: Literal["copy", "read"]
    set_bytes: int
    make: Callable[[], Any]
    check: Callable[[Any], Callable[[Tensor], float]]
    tolerance: float
    ours: Callable[[Any], Prepared]
    cold: bool = False
    in_place: bool = False
    most_sets: int = 64
    quick: bool = False
    peer_check: Callable[[Any], Callable[[Tensor], float]] | None = None
