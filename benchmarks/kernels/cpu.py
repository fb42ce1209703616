"""Times every operator on the CPU beside torch's own, in one process, as one JSON object a line.

Ours and the peers take turns in rounds, on the same inputs, threads and warm caches; a time is the
median of the rounds' means. The floor is the larger of the bytes over the measured copy bandwidth
and the products over the measured rate of a matrix product; small inputs stay in the caches and may
beat the first.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.peers.torch_cpu import PEERS
from benchmarks.kernels.work import num_bytes, num_flops
from lightvl import ops
from lightvl.testing.cases import OPERATORS
from lightvl.testing.norm_reference import EPS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROUNDS = 7
ROUND_S = 0.02

# The tests' call copies the residual, which the operator updates.
OURS: dict[str, Callable[[Any], object]] = {
    "add_rms_norm": lambda i: ops.add_rms_norm(i.x, i.residual, i.weight, EPS),
}
CONTIGUOUS = {"x", "residual", "table", "image_arena"}  # the tests' are strided on purpose
ONES = {"q_norm", "k_norm"}  # repeated in place, other weights would end in subnormal numbers


def prepared(inputs: Any) -> Any:  # noqa: ANN401
    """Return the inputs as the engine passes them, without what suits the tests alone."""
    if isinstance(inputs, torch.Tensor):
        return inputs.contiguous()
    if not dataclasses.is_dataclass(inputs):
        return inputs
    values = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    changed = {name: values[name].contiguous() for name in values.keys() & CONTIGUOUS}
    changed |= {
        name: torch.ones_like(values[name]) for name in ONES if values.get(name) is not None
    }
    return dataclasses.replace(inputs, **changed)  # type: ignore[type-var]


def mean_us(call: Callable[[], object], num_calls: int) -> float:
    """Mean microseconds of a call."""
    begin = time.perf_counter()
    for _ in range(num_calls):
        call()
    return (time.perf_counter() - begin) / num_calls * 1e6


def median_us(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median microseconds of each of the calls, which take turns."""
    num_calls = {}
    for name, call in calls.items():
        call()
        num_calls[name] = max(1, int(ROUND_S * 1e6 / mean_us(call, 2)))
    rounds = [
        {name: mean_us(call, num_calls[name]) for name, call in calls.items()}
        for _ in range(ROUNDS)
    ]
    return {name: statistics.median(r[name] for r in rounds) for name in calls}


def ceilings() -> tuple[float, float]:
    """Bytes a second of a copy beyond the caches, and FLOP a second of a float32 product."""
    source = torch.ones(1 << 27)
    target = torch.empty_like(source)
    square = torch.ones(1024, 1024)
    times = median_us({"copy": lambda: target.copy_(source), "product": lambda: square @ square})
    return 2 * source.nbytes / times["copy"] * 1e6, 2 * 1024**3 / times["product"] * 1e6


def processor() -> str:
    """The processor's name and the number of threads in use."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    name = names[0] if names else platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, {ops.cpu_isa()}"


def measure(
    operator: str, case: object, dtype: torch.dtype, limits: tuple[float, float]
) -> dict[str, object]:
    """One row: an operator on one case against its peers."""
    inputs = prepared(OPERATORS[operator].make(case, dtype))
    run = OURS.get(operator, OPERATORS[operator].run)
    calls: dict[str, Callable[[], object]] = {"ours": lambda: run(inputs)}
    for name, peer in PEERS[operator].items():
        calls[name] = lambda peer=peer: peer(inputs)  # type: ignore[misc]
    times = median_us(calls)
    ours_us = times.pop("ours")
    best_peer = min(times, key=lambda name: times[name])
    floor_us = 1e6 * max(
        num_bytes(operator, inputs) / limits[0], num_flops(operator, inputs) / limits[1]
    )
    return {
        "benchmark": "kernel",
        "operator": operator,
        "shape": str(case),
        "dtype": str(dtype).removeprefix("torch."),
        "ours_us": round(ours_us, 2),
        "peers": {name: round(us, 2) for name, us in times.items()},
        "best_peer": best_peer,
        "ratio": round(times[best_peer] / ours_us, 2),
        "floor_us": round(floor_us, 2),
        "share_of_floor": round(floor_us / ours_us, 3),
        "cache": "warm",
    }


def run(options: argparse.Namespace, context: dict[str, Any]) -> None:
    """Measure what the flags ask for."""
    torch.set_num_threads(options.threads)
    context = context | {"device": processor()}
    names = options.operators.split(",") if options.operators else list(OPERATORS)
    with torch.inference_mode():
        limits = ceilings()
        for operator in names:
            for case in OPERATORS[operator].speed_cases:
                row = measure(operator, case, DTYPES[options.dtype], limits) | context
                print(json.dumps(row), flush=True)
                if options.out is not None:
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
