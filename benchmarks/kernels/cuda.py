"""Times every operator on a GPU beside its peers, in one process on the same inputs.

A row is measured so: inputs, a reference in float64, then ours and each peer in turn: checked,
timed in a graph, checked again. Ceilings are taken first. Rows are printed as they come and added
to the results file, from which `lightvl.testing.readme` makes the tables and
`benchmarks.kernels.report` the plot.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.kernels import elementwise, host, image, linear, paged, sampling, vision
from benchmarks.kernels.ceilings import Ceilings
from benchmarks.kernels.ceilings import measure as measure_ceilings
from benchmarks.kernels.peers import PEERS, Missing, adapter
from benchmarks.kernels.row import Row
from benchmarks.kernels.timing import Prepared, num_sets, time_us

RESULTS = Path(__file__).resolve().parents[1] / "results"
HOST = "host"
KERNELS = os.environ.get("LIGHTVL_ATTENTION")  # sm80: kernels that no target is set for
TABLES: tuple[Callable[[], Iterator[Row]], ...] = (
    paged.decode_rows,
    paged.prefill_rows,
    vision.rows,
    elementwise.rows,
    elementwise.rope_rows,
    linear.rows,
    sampling.rows,
    image.rows,
)


class Wrong(Exception):
    """A result differs from the reference by more than it may."""


def all_rows(names: set[str], quick: bool) -> list[Row]:
    """The rows of the groups or operators named, or all."""
    found = [row for table in TABLES for row in table() if row.quick or not quick]
    return [row for row in found if not names or {row.group, row.operator} & names]


def measured(row: Row, sets: list[Any], prepare: Callable[[Any], Prepared], error: Any) -> Any:  # noqa: ANN401
    """Microseconds of one implementation, and its larger error before and after the timing."""
    prepared = [prepare(i) for i in sets]
    prepared[0].call()
    torch.cuda.synchronize()
    before = error(prepared[0].output())
    us = time_us(prepared, cold=row.cold)
    again = prepare(sets[0]) if row.in_place else prepared[0]
    again.call()
    torch.cuda.synchronize()
    return us, max(before, error(again.output()))


def peers_of(row: Row, sets: list[Any], error: Any) -> tuple[dict[str, Any], dict[str, str]]:  # noqa: ANN401
    """Times and errors of the row's peers, and why others are missing."""
    times, skipped = {}, {}
    for name, place in PEERS[row.group].items():
        try:
            us, wrong_by = measured(row, sets, adapter(*place), error)
            if not math.isfinite(wrong_by):
                raise Missing("its result isn't finite")
            times[name] = us, wrong_by
        except Missing as reason:
            skipped[name] = str(reason)
        except Exception as failure:  # a foreign kernel may refuse the shape in any way
            lines = str(failure).strip().splitlines()
            skipped[name] = f"{type(failure).__name__}: {lines[0] if lines else ''}"[:200]
    return times, skipped


def measure(row: Row, ceilings: Ceilings) -> dict[str, Any]:
    """One row of the results.

    Raises:
        Wrong: our result is.
    """
    sets = [row.make() for _ in range(num_sets(row.set_bytes, row.most_sets))]
    error = row.check(sets[0])
    ours_us, ours_error = measured(row, sets, row.ours, error)
    if not ours_error <= row.tolerance:
        raise Wrong(f"error {ours_error:.3g}, at most {row.tolerance:g} allowed")
    peer_error = row.peer_check(sets[0]) if row.peer_check else error
    times, skipped = peers_of(row, sets, peer_error)
    right = {name: us for name, (us, _) in times.items()}
    best = min(right, key=lambda name: right[name], default=None)
    floor_us = ceilings.floor_us(row.rate, row.num_bytes, row.num_flops)
    ratio = right[best] / ours_us if best else None
    share = floor_us / ours_us
    target = None if KERNELS else row.target
    aim = target.ratio() if target else None
    return {
        "benchmark": "kernel",
        "operator": row.operator,
        "shape": row.shape,
        "dtype": "bfloat16",
        "ours_us": ours_us,
        "peers": right,
        "best_peer": best,
        "ratio": ratio,
        "floor_us": floor_us,
        "share_of_floor": share,
        "cache": "cold" if row.cold or len(sets) * row.set_bytes > 1e8 else "warm",
        "table": row.group,
        "target_us": target.us if target else None,
        "target_ratio": aim,
        "target_share_of_floor": target.share_of_floor if target else None,
        "met": target.met(ratio, share) if target else None,
        "error": ours_error,
        "peer_errors": {name: e for name, (_, e) in times.items()},
        "skipped": skipped,
        "bytes": row.num_bytes,
        "flops": row.num_flops,
    }


def rounded(value: Any) -> Any:  # noqa: ANN401
    """Four digits of every float."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return value


def line(row: dict[str, Any]) -> str:
    """A measured row in a line of text."""
    peers = ", ".join(f"{name} {us:.4g}" for name, us in sorted(row["peers"].items()))
    ratio = f"{row['ratio']:.3f}" if row["ratio"] else "-"
    aim = row["target_ratio"] and f" (aim {row['target_ratio']:.3f})"
    verdict = {True: "met", False: "MISSED", None: ""}[row["met"]]
    return (
        f"{row['operator']:17} {row['shape']:34} {row['ours_us']:8.4g} us  "
        f"ratio {ratio}{aim or ''}  floor {100 * row['share_of_floor']:.0f} %  {verdict:6}  {peers}"
    )


@contextmanager
def _output(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    if path is None:
        yield lambda row: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps(rounded(row)) + "\n")
            file.flush()

        yield write


def results_file() -> Path:
    """Where this GPU's rows are kept, such as kernels_h100.jsonl."""
    words = torch.cuda.get_device_name().lower().removeprefix("nvidia ").split()
    return RESULTS / f"kernels_{words[0]}.jsonl"


def _tell_skipped(rows: list[dict[str, Any]]) -> None:
    """Prints each peer that was missing, with its reasons."""
    reasons = {(name, why): 0 for row in rows for name, why in row["skipped"].items()}
    for row in rows:
        for pair in row["skipped"].items():
            reasons[pair] += 1
    for (name, why), count in reasons.items():
        print(f"skipped {name} in {count} rows: {why}")


def run(options: argparse.Namespace, context: dict[str, Any]) -> None:
    """Measure what the flags ask for; exits with 1 if a result is wrong."""
    begin = time.monotonic()
    names = set(options.operators.split(",")) if options.operators else set()
    known = {HOST, *(n for row in all_rows(set(), False) for n in (row.group, row.operator))}
    if names - known:
        sys.exit(f"--operators {', '.join(names - known)}: expected {', '.join(sorted(known))}")
    rows, failed = all_rows(names, options.quick), 0
    done: list[dict[str, Any]] = []
    context = context | {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    if KERNELS:
        context = context | {
            "attention": KERNELS,
            "command": f"LIGHTVL_ATTENTION={KERNELS} {context['command']}",
        }
    with torch.inference_mode(), _output(options.out or results_file()) as write:
        ceilings = measure_ceilings()
        rates = {"copy_gbs": ceilings.copy / 1e9, "read_gbs": ceilings.read / 1e9}
        rates |= {"tflops": ceilings.flops / 1e12, "launch_us": ceilings.launch_us}
        write({"benchmark": "kernel_ceilings", **rates, **context})
        print("ceilings: " + ", ".join(f"{name} {value:.4g}" for name, value in rates.items()))
        for row in tqdm(rows, unit="row", disable=None):
            if time.monotonic() - begin > options.budget:
                print(f"over the budget: {len(rows) - len(done) - failed} rows left out")
                break
            try:
                done.append(measure(row, ceilings))
            except Exception as error:
                failed += 1
                print(f"{row.operator} {row.shape}: {type(error).__name__}: {error}", flush=True)
                continue
            write(done[-1] | context)
            tqdm.write(line(done[-1]))
            sys.stdout.flush()
            torch.cuda.empty_cache()
        if not names or HOST in names:
            for result in host.measure():
                write(result | context)
                us = "{operator_us:6.2f} us of {budget_us:g}, {host_us:6.2f} with new outputs"
                print(f"host {result['operator']:26} {us.format_map(result)}")
    met = [row["met"] for row in done if row["met"] is not None]
    _tell_skipped(done)
    print(
        f"{sum(met)} of {len(met)} targets met, {failed} failed, {time.monotonic() - begin:.0f} s"
    )
    sys.exit(int(failed > 0))
