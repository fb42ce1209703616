"""Times of calls on a GPU: medians over replays of a graph of many calls.

A graph leaves out what launching costs the host, as a captured decode step does. Data is read from
memory and not from the caches: either the calls take turns on copies that exceed the L2 cache, or
the cache is emptied before each call and the time of the emptying alone subtracted.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], object]

MOST_CALLS = 50  # in a graph
MOST_CALLS_COLD = 16
L2_FACTOR = 3  # rotated copies exceed the cache this often


@dataclass(frozen=True)
class Prepared:
    """One implementation on one set of inputs.

    Attributes:
        call: Launches the work; everything that a serving engine does once a step is done.
        output: Returns what the last call gave, in the layout of the reference.
        graph: Whether the call can be captured; else it is timed with its launches.
    """

    call: Call
    output: Callable[[], Tensor]
    graph: bool = True


class Kept:
    """A call that keeps its result, so that the next one can't be given the same memory."""

    def __init__(self, call: Callable[[], Tensor]) -> None:
        self._call = call
        self._result: Tensor | None = None

    def __call__(self) -> None:
        """Call, and keep what comes back."""
        self._result = self._call()

    def result(self) -> Tensor:
        """Return what the last call gave."""
        assert self._result is not None
        return self._result


def keeping(
    call: Callable[[], Tensor],
    shape: Callable[[Tensor], Tensor] = lambda x: x,
    graph: bool = True,
) -> Prepared:
    """A call that allocates its result; `shape` brings it into the reference's layout."""
    kept = Kept(call)
    return Prepared(kept, lambda: shape(kept.result()), graph)


def l2_bytes() -> int:
    """Size of the L2 cache."""
    size: int = torch.cuda.get_device_properties(0).L2_cache_size
    return size


def num_sets(set_bytes: int, most: int) -> int:
    """How many copies of inputs of this size to rotate."""
    return max(1, min(most, math.ceil(L2_FACTOR * l2_bytes() / max(set_bytes, 1))))


@cache
def _evictor() -> tuple[Tensor, Tensor]:
    words = max(128 << 20, int(2.5 * l2_bytes())) // 4
    return torch.ones(words, device="cuda"), torch.empty((), device="cuda")


def evict() -> None:
    """Empty the L2 cache by reading other memory: no dirty lines, so no write-back later."""
    data, total = _evictor()
    torch.sum(data, dim=0, out=total)


def _events_us(call: Call, repetitions: int) -> float:
    """Median microseconds between events around the call."""
    pairs = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repetitions)
    ]
    for begin, end in pairs:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    median_ms: float = statistics.median(begin.elapsed_time(end) for begin, end in pairs)
    return 1e3 * median_ms


def graph_of(call: Call) -> torch.cuda.CUDAGraph:
    """Capture the call after one run on a side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def _in_turn(calls: Sequence[Call], num_calls: int, before: Call | None = None) -> Call:
    def run() -> None:
        for i in range(num_calls):
            if before is not None:
                before()
            calls[i % len(calls)]()

    return run


def time_us(
    prepared: Sequence[Prepared], cold: bool = False, target_ms: float = 2.5, repetitions: int = 7
) -> float:
    """Median microseconds of one call.

    Args:
        prepared: The implementation on each of the rotated sets.
        cold: Empty the cache before each call instead of rotating.
        target_ms: About how long a graph should take.
        repetitions: Replays to take the median of.
    """
    calls = [p.call for p in prepared]
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    estimate_us = max(_events_us(calls[0], 3), 1.0)
    num_calls = int(min(max(1e3 * target_ms / estimate_us, 1), MOST_CALLS))
    if not prepared[0].graph:
        return _events_us(_in_turn(calls, num_calls), repetitions) / num_calls
    if cold:
        num_calls = min(num_calls, MOST_CALLS_COLD)
        evict()
        both = graph_of(_in_turn(calls, num_calls, evict))
        alone = graph_of(_in_turn([evict], num_calls))
        differences = []
        for _ in range(3):
            alone_us = _events_us(alone.replay, repetitions)
            differences.append(_events_us(both.replay, repetitions) - alone_us)
        return statistics.median(differences) / num_calls
    num_calls = max(num_calls, len(calls))
    graph = graph_of(_in_turn(calls, num_calls))
    graph.replay()
    return _events_us(graph.replay, repetitions) / num_calls


def host_us(call: Call, num_calls: int = 200, num_rounds: int = 3) -> float:
    """Microseconds that a call keeps the host, without waiting for the GPU: the least of rounds."""
    call()
    rounds = []
    for _ in range(num_rounds):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(num_calls):
            call()
        rounds.append(time.perf_counter() - begin)
    torch.cuda.synchronize()
    return 1e6 * min(rounds) / num_calls


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference to the norm of the expected; infinite where something isn't finite."""
    x, y = actual.double().flatten(), expected.double().flatten()
    if not bool(torch.isfinite(x).all()):
        return math.inf
    return float((x - y).norm() / y.norm().clamp_min(1e-30))


def random(*shape: int, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Tensor:  # noqa: ANN401
    """Random numbers on the GPU: never zeros, on which matrix products run faster."""
    return torch.randn(*shape, dtype=dtype, device="cuda", **options)
