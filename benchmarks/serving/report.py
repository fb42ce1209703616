"""What a run measured: rows of the results file, and the targets that they are held against."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from benchmarks.serving.workload import Answer, decode_rate, gaps, spread, whole_rate


@dataclass(frozen=True)
class Target:
    """A measured value and its bound.

    Attributes:
        what: In words.
        model: The checkpoint's name.
        values: One of each repetition; their median counts.
        bound: The limit.
        at_least: Whether the value must not be below the limit, else not above.
        unit: Of value and bound.
    """

    what: str
    model: str
    values: Sequence[float]
    bound: float
    at_least: bool = True
    unit: str = "x"

    @property
    def value(self) -> float:
        """The median."""
        return median(self.values)

    @property
    def met(self) -> bool:
        """Whether the median keeps the bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass
class Report:
    """Gathers rows and targets, writes them, prints the table.

    Attributes:
        out: File to append to, or None.
        num_threads: Of either side.
    """

    out: Path | None
    num_threads: int
    targets: list[Target] = field(default_factory=list)
    run: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S"))

    def add_load(
        self, load: str, server: str, model: str, repetitions: Sequence[list[Answer]]
    ) -> None:
        """Adds one server's row for one load: medians over the repetitions."""
        every = [answer for answers in repetitions for answer in answers]
        decode = [rate for answers in repetitions if (rate := decode_rate(answers)) is not None]
        whole = [whole_rate(answers) for answers in repetitions]
        num_tokens = len(every[0].token_s)
        self.add_row(
            benchmark="serving",
            load=load,
            server=server,
            model=model,
            requests_per_s=median(whole) / num_tokens,
            output_tokens_per_s=median(whole),
            decode_tokens_per_s=median(decode) if decode else None,
            decode_tokens_per_s_all=decode,
            tiles_per_s=None,
            ttft_ms=spread([answer.ttft_s for answer in every]),
            tpot_ms=spread([answer.tpot_s for answer in every]),
            itl_ms=spread(gaps(every)),
            errors=0,
        )

    def add_target(self, target: Target) -> None:
        """Adds a target's row."""
        self.targets.append(target)
        self.add_row(
            benchmark="serving_target",
            what=target.what,
            model=target.model,
            value=target.value,
            values=list(target.values),
            unit=target.unit,
            target=f"{'>=' if target.at_least else '<='} {target.bound:g}",
            verdict="met" if target.met else "missed",
        )

    def print_table(self) -> None:
        """Prints every target with its value and verdict."""
        print(f"\n{'':74}{'model':10}{'measured':>10}  {'target':14}")
        for t in self.targets:
            bound = f"{'≥' if t.at_least else '≤'} {t.bound:g} {t.unit}"
            verdict = "met" if t.met else "MISSED"
            print(f"{t.what:74}{t.model:10}{t.value:10.4g}  {bound:14}{verdict}")

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row that names its own device and command to this run."""
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            with self.out.open("a") as file:
                file.write(json.dumps(_rounded({**row, "run": self.run})) + "\n")

    def add_row(self, **row: Any) -> None:  # noqa: ANN401
        """Adds a row to this run."""
        self.write(
            row
            | {
                "device": f"{_processor()}, {self.num_threads} threads",
                "dtype": "fp32",
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "load_average": os.getloadavg()[0],
                "autogroup_nice": _autogroup_nice(),
                "commit": _commit(),
                "command": _command(),
            }
        )


def _rounded(value: Any) -> Any:  # noqa: ANN401
    """Keeps four digits of every float."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value


def _autogroup_nice() -> int | None:
    """Returns how this session's processes are weighed against others': 0 is equal."""
    path = Path("/proc/self/autogroup")
    return int(path.read_text().split()[-1]) if path.exists() else None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _command() -> str:
    module = sys.modules["__main__"].__spec__
    name = module.name.removesuffix(".__main__") if module else "benchmarks.serving"
    return " ".join(["python -m", name, *sys.argv[1:]])


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
