"""The scheduler alone: what planning a decode step and reading its results cost the host.

    python -m benchmarks.serving.scheduler [--out FILE]

Sequences of 100 to 163 prompt tokens decode; the runner is replaced by made-up results. Prints one
JSON row per number of sequences: median and 99th percentile of plan and apply together, and of
encoding the step's message.
"""

import argparse
import gc
import json
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import msgspec

import lightvl
from benchmarks.serving.decode_profile import engine_config
from lightvl.engine.memory import MemoryPlan
from lightvl.engine.plan import Drawn, StepResult
from lightvl.engine.scheduler import Scheduler, Step
from lightvl.messages import AddRequest, StepOutputs, ToFront
from lightvl.model_config import load_model_config
from lightvl.types import SamplingParams

NUM_STEPS = 1000


def main() -> int:
    """Runs every size and prints its row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [_measure(num_sequences) for num_sequences in (1, 16, 64, 256)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    print(text, end="")
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(text)
    return 0


def _measure(num_sequences: int) -> dict[str, object]:
    scheduler = _start(num_sequences)
    encoder = msgspec.msgpack.Encoder()
    step_us, message_us = [], []
    gc.collect()
    gc.freeze()  # as the engine's process does before it serves
    for _ in range(NUM_STEPS):
        begin = perf_counter()
        step = scheduler.plan()
        assert step is not None
        planned = perf_counter()
        result = _result(step)
        resumed = perf_counter()
        scheduler.apply(step, result)
        applied = perf_counter()
        message = _step_outputs(scheduler.outbox)
        assert len(message.outputs) == num_sequences
        begin_encoding = perf_counter()
        encoder.encode(message)
        message_us.append(1e6 * (perf_counter() - begin_encoding))
        step_us.append(1e6 * (planned - begin + applied - resumed))
    gc.unfreeze()
    return {
        "benchmark": "scheduler",
        "sequences": num_sequences,
        "plan_and_apply_us": {"p50": round(median(step_us), 1), "p99": _p99(step_us)},
        "message_us": {"p50": round(median(message_us), 1), "p99": _p99(message_us)},
        "device": platform.processor() or platform.machine(),
        "commit": _commit(),
        "command": "python -m benchmarks.serving.scheduler",
    }


def _start(num_sequences: int) -> Scheduler:
    model_dir = Path(lightvl.__file__).parent / "demo"
    config = engine_config(model_dir, load_model_config(model_dir), max_total_len=4096)
    scheduler = Scheduler(config, MemoryPlan(20_000, 1000, 4096, ()))
    sampling = SamplingParams(max_new_tokens=3 * NUM_STEPS, ignore_eos=True)
    for i in range(num_sequences):
        prompt = [10 + i] * (100 + i % 64)
        scheduler.add(AddRequest(i, prompt, sampling))
    while any(not seq.is_decoding for seq in scheduler.running) or scheduler.waiting:
        step = scheduler.plan()
        assert step is not None
        scheduler.apply(step, _result(step))
    scheduler.outbox.clear()
    return scheduler


def _result(step: Step) -> StepResult:
    return StepResult([Drawn(seq.slot, 5) for seq in step.drawing], 0.0, 0.001)


def _step_outputs(outbox: list[ToFront]) -> StepOutputs:
    (message,) = outbox
    assert isinstance(message, StepOutputs)
    outbox.clear()
    return message


def _p99(values: list[float]) -> float:
    return round(sorted(values)[len(values) * 99 // 100], 1)


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
