"""Tables of the kernel benchmark's results, for README.md and docs/kernels.md."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results/kernels_h100.jsonl"

Row = dict[str, Any]

# Tables of the benchmark in the order that they are shown, and what they are called.
TABLES = {
    "decode": "`paged_attention`, decode",
    "prefill": "`paged_attention`, prefill",
    "vision": "`vision_attention`",
    "rms_norm": "`rms_norm`",
    "add_rms_norm": "`add_rms_norm`",
    "layer_norm": "`layer_norm`",
    "scale_add": "`scale_add`",
    "silu_mul": "`silu_mul`",
    "gelu": "`gelu`, with bias",
    "rope_write_kv": "`rope_write_kv`",
    "gather_embeddings": "`gather_embeddings`",
    "linear": "`linear_small`",
    "greedy": "`sample`, greedy",
    "sampling": "`sample`, filtered draw",
    "image": "`image_preprocess`",
}


def read(path: Path = RESULTS) -> list[Row]:
    """Return the rows of the results file, or none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def newest(rows: list[Row]) -> list[Row]:
    """Return the last measurement of each operator and shape, in the order of `TABLES`.

    Rows of `LIGHTVL_ATTENTION`, of kernels that the GPU wouldn't be given otherwise, are left out.
    """
    return _last(r for r in rows if "attention" not in r)


def _last(rows: Iterable[Row]) -> list[Row]:
    kept = {(r["table"], r["shape"]): r for r in rows if r["benchmark"] == "kernel"}
    order = list(TABLES)
    return sorted(kept.values(), key=lambda r: order.index(r["table"]))  # stable


def _where(rows: list[Row]) -> str:
    """On what, with what and from which commits the rows were taken."""
    devices = ", ".join(dict.fromkeys(r["device"] for r in rows))
    torches = ", ".join(dict.fromkeys(r["torch"] for r in rows))
    commits = ", ".join(dict.fromkeys(r["commit"] for r in rows))
    return f"{devices}, CUDA {rows[-1]['cuda']}, torch {torches}, bfloat16; commits {commits}"


def _verdicts(rows: list[Row]) -> str:
    judged = [r["met"] for r in rows if r["met"] is not None]
    return f"{sum(judged)} of {len(judged)}" if judged else ""


def summary_table(rows: list[Row] | None = None) -> str:
    """Return a line for each operator: the range of its ratios to the best peer, targets met."""
    shown = newest(read() if rows is None else rows)
    if not shown:
        return "Not measured yet."
    groups = defaultdict(list)
    for row in shown:
        groups[row["table"]].append(row)
    lines = [
        f"{_where(shown)}; best peer's time over ours, worst, median and best of the shapes:",
        "",
        "| operator | shapes | worst | median | best | targets met |",
        "|---|---|---|---|---|---|",
    ]
    for table, members in groups.items():
        ratios = sorted(r["ratio"] for r in members if r["ratio"])
        spread = (ratios[0], median(ratios), ratios[-1]) if ratios else ()
        worst_to_best = [f"{x:.2f}" for x in spread] or ["", "", ""]
        cells = [TABLES[table], str(len(members)), *worst_to_best, _verdicts(members)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _line(row: Row) -> str:
    best = row["best_peer"]
    peer = f"{best} {row['peers'][best]:.4g}" if best else ""
    ratio = f"{row['ratio']:.2f}" if row["ratio"] else ""
    aim = f"{row['target_ratio']:.2f}" if row["target_ratio"] else ""
    if row["target_share_of_floor"]:
        aim = f"{100 * row['target_share_of_floor']:.0f} % of floor"
    verdict = {True: "met", False: "missed", None: ""}[row["met"]]
    share = f"{100 * row['share_of_floor']:.0f} %"
    cells = [TABLES[row["table"]], row["shape"], f"{row['ours_us']:.4g}", peer, ratio, aim, share]
    return f"| {' | '.join([*cells, row['cache'], verdict])} |"


def full_table(rows: list[Row] | None = None) -> str:
    """Return every shape: ours and the best peer in microseconds, their ratio, aim and floor."""
    shown = newest(read() if rows is None else rows)
    if not shown:
        return "Not measured yet."
    lines = [
        f"{_where(shown)}; microseconds of a call in a graph:",
        "",
        "| operator | shape | ours | best peer | ratio | aim | of floor | caches | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_line, shown)])


def sm80_table(rows: list[Row] | None = None) -> str:
    """Return attention with `LIGHTVL_ATTENTION=sm80` beside the kernels for Hopper."""
    given = read() if rows is None else rows
    shown = _last(r for r in given if r.get("attention") == "sm80")
    if not shown:
        return "Not measured yet."
    ours_us = {(r["table"], r["shape"]): r["ours_us"] for r in newest(given)}
    lines = [
        f"{_where(shown)}; microseconds of a call in a graph:",
        "",
        "| operator | shape | `mma.sync` | of matrix rate | `wgmma` |",
        "|---|---|---|---|---|",
    ]
    for row in shown:
        other = ours_us.get((row["table"], row["shape"]))
        cells = [TABLES[row["table"]], row["shape"], f"{row['ours_us']:.4g}"]
        cells += [f"{100 * row['share_of_floor']:.0f} %", f"{other:.4g}" if other else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def host_table(rows: list[Row] | None = None) -> str:
    """Return what a call of each operator costs the host."""
    given = read() if rows is None else rows
    shown = {r["operator"]: r for r in given if r["benchmark"] == "kernel_host"}
    if not shown:
        return "Not measured yet."
    lines = ["| | operator, us a call | with new outputs | budget |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['operator_us']:.1f} | {row['host_us']:.1f} | {row['budget_us']:g} |"
        for name, row in shown.items()
    ]
    return "\n".join(lines)
