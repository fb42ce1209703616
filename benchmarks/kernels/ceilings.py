"""What the GPU can do at most, measured in the same run as the operators: their floors."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.kernels.timing import Call, Prepared, random, time_us

GIB = 1 << 30
SQUARE = 8192  # of the matrix product that runs fastest


@dataclass(frozen=True)
class Ceilings:
    """Rates in bytes and operations a second, and the time of the smallest kernel in a graph."""

    copy: float
    read: float
    flops: float
    launch_us: float

    def floor_us(self, rate: str, num_bytes: int, num_flops: int) -> float:
        """The least time for bytes at `copy` or `read` rate, products, and one launch."""
        seconds = max(num_bytes / getattr(self, rate), num_flops / self.flops)
        floor: float = max(1e6 * seconds, self.launch_us)
        return floor


def _timed(call: Call) -> float:
    us: float = time_us([Prepared(call, lambda: torch.empty(0))], repetitions=10)
    return us * 1e-6


def _product_s() -> float:
    shapes = math.ceil(150e6 / (3 * 2 * SQUARE**2))

    def operands() -> tuple[Tensor, Tensor, Tensor]:
        return random(SQUARE, SQUARE), random(SQUARE, SQUARE), random(SQUARE, SQUARE)

    sets = [operands() for _ in range(shapes)]
    prepared = [
        Prepared(lambda a=a, b=b, c=c: torch.mm(a, b.t(), out=c), lambda c=c: c)  # type: ignore[misc]
        for a, b, c in sets
    ]
    return min(time_us(prepared, target_ms=6) for _ in range(5)) * 1e-6  # clocks move


def measure() -> Ceilings:
    """Take the ceilings of this GPU."""
    source, target = random(GIB), random(GIB)  # 2 GiB each
    words, total = source.view(torch.float32), torch.empty((), device="cuda")
    copies = (
        _timed(lambda: torch.neg(source, out=target)),
        _timed(lambda: target.copy_(source)),
    )
    read_s = _timed(lambda: torch.sum(words, dim=0, out=total))
    tiny = torch.zeros(32, device="cuda")
    return Ceilings(
        copy=2 * source.nbytes / min(copies),
        read=source.nbytes / read_s,
        flops=2 * SQUARE**3 / _product_s(),
        launch_us=1e6 * _timed(lambda: tiny.add_(1)),
    )
