"""Where a decode step's time goes: scheduler, step assembly, every operator, sampling.

One engine runs in this process; each function of interest is timed without what it calls, so that
the rows of the table add up to the step. The timers cost about 0.4 µs a call; the first line gives
the step's median without them.

    python -m benchmarks.serving.decode_profile [--model_dir DIR] [--batch 1 16] [--context 288]
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

import lightvl
from lightvl import ops
from lightvl.config import EngineConfig, ModelConfig
from lightvl.engine.batch import BatchBuilder
from lightvl.engine.engine import Engine
from lightvl.engine.memory import plan_memory
from lightvl.engine.runner import Runner
from lightvl.engine.sampler import Sampler
from lightvl.engine.scheduler import Scheduler
from lightvl.layers.linear import Linear
from lightvl.messages import AddRequest
from lightvl.model_config import load_model_config
from lightvl.models.decoder import Decoder
from lightvl.models.registry import load_model
from lightvl.types import SamplingParams

WARM_UP = 5


class Stopwatch:
    """Times functions, each without the timed functions that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inner = [0.0]

    def wrap(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, timed under `label`."""

        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            self._inner.append(0.0)
            begin = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                whole = perf_counter() - begin
                self.seconds[label] += whole - self._inner.pop()
                self.calls[label] += 1
                self._inner[-1] += whole

        return timed


TIMED: list[tuple[Any, str, str]] = [
    (Scheduler, "plan", "scheduler: plan"),
    (Scheduler, "apply", "scheduler: apply"),
    (Runner, "execute", "runner, the rest"),
    (BatchBuilder, "build", "batch: build"),
    (Decoder, "forward", "layers, the rest"),
    (Sampler, "draw", "sampler, the rest"),
    (Linear, "__call__", "linear"),
    (Decoder, "logits", "head"),
    *(
        (ops, name, name)
        for name in (
            "gather_embeddings",
            "rms_norm",
            "add_rms_norm",
            "rope_write_kv",
            "paged_attention",
            "silu_mul",
            "sample",
        )
    ),
]


@contextmanager
def timed(stopwatch: Stopwatch) -> Iterator[None]:
    """Times the functions of `TIMED` while it is open."""
    originals = [getattr(owner, name) for owner, name, _ in TIMED]
    for (owner, name, label), original in zip(TIMED, originals, strict=True):
        setattr(owner, name, stopwatch.wrap(label, original))
    try:
        yield
    finally:
        for (owner, name, _), original in zip(TIMED, originals, strict=True):
            setattr(owner, name, original)


def make_engine(model_dir: Path, max_total_len: int) -> Engine:
    """Returns an engine on the checkpoint that sends its messages nowhere."""
    model = load_model_config(model_dir)
    config = engine_config(model_dir, model, max_total_len)
    weights = load_model(
        model, model_dir, dtype=torch.float32, device=torch.device("cpu"), load_workers=2
    )
    memory = plan_memory(config)
    runner = Runner(config, weights, torch.device("cpu"), memory, None)
    return Engine(config, memory, runner, lambda *messages: None)


def engine_config(model_dir: Path, model: ModelConfig, max_total_len: int) -> EngineConfig:
    """Returns the server's defaults on a CPU."""
    return EngineConfig(
        model_dir=str(model_dir),
        model=model,
        device="cpu",
        data_type="fp32",
        mem_fraction=0.9,
        page_size=64,
        max_total_token_num=None,
        max_req_total_len=max_total_len,
        running_max_req_size=256,
        chunked_prefill_size=256,
        max_itl_ms=0.0,
        batch_max_tokens=16384,
        prefix_cache=True,
        cache_capacity=200,
        cache_bytes=None,
        visual_infer_batch_size=None,
        load_workers=2,
        arena_bytes=0,
    )


def start_decoding(engine: Engine, batch: int, context: int, num_steps: int) -> None:
    """Adds `batch` random prompts and steps until all of them decode."""
    sampling = SamplingParams(temperature=0.0, max_new_tokens=10 * num_steps, ignore_eos=True)
    generator = np.random.default_rng(0)
    for i in range(batch):
        engine.handle(AddRequest(i, generator.integers(0, 1000, context).tolist(), sampling))
    while engine.stats()["generation_tokens_total"] < batch * WARM_UP:
        engine.step()


def profile(model_dir: Path, batch: int, context: int, num_steps: int) -> None:
    """Prints the table of one batch size."""
    engine = make_engine(model_dir, context + 12 * num_steps)
    start_decoding(engine, batch, context, num_steps)
    steps = []
    for _ in range(num_steps):
        begin = perf_counter()
        engine.step()
        steps.append(perf_counter() - begin)
    step_ms = 1000 * median(steps)
    print(
        f"\nbatch {batch}, context {context}: {step_ms:.3f} ms a step (median of {num_steps}), "
        f"{batch / step_ms * 1000:.0f} tokens/s"
    )
    stopwatch = Stopwatch()
    with timed(stopwatch):
        for _ in range(num_steps):
            engine.step()
    total = sum(stopwatch.seconds.values())
    print(f"{'':24}{'calls':>8}{'µs a step':>12}{'µs a call':>12}{'share':>8}")
    for label, seconds in sorted(stopwatch.seconds.items(), key=lambda item: -item[1]):
        calls, micros = stopwatch.calls[label] / num_steps, seconds / num_steps * 1e6
        print(f"{label:24}{calls:8.0f}{micros:12.1f}{micros / calls:12.1f}{seconds / total:8.1%}")


def main() -> None:
    """Reads the command line and profiles each batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    demo = Path(lightvl.__file__).parent / "demo"
    parser.add_argument("--model_dir", type=Path, default=demo)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--context", type=int, default=288)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.model_dir.name}, torch {torch.__version__}, {options.threads} threads")
    for batch in options.batch:
        profile(options.model_dir, batch, options.context, options.steps)


if __name__ == "__main__":
    main()
