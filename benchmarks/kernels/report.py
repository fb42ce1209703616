"""Draws the measured rows: `python -m benchmarks.kernels.report docs/kernels_roofline.svg`.

Left, what a call that is bound by memory moves against the rate it reaches; right, the same for
calls that are bound by matrix products. The lines are what the GPU was measured to do at most, bent
where launching alone takes longer.
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from lightvl.testing.kernel_tables import TABLES, newest, read

PRODUCTS = ("prefill", "vision")  # bound by products, the rest by memory


def _draw(axes: Any, rows: list[dict[str, Any]], work: str, scale: float, color: Any) -> None:  # noqa: ANN401
    """One operator's shapes: ours filled, the best peer's hollow."""
    x = [row[work] for row in rows]
    ours = [row[work] / row["ours_us"] * scale for row in rows]
    label = TABLES[rows[0]["table"]].replace("`", "")
    axes.scatter(x, ours, s=18, color=color, label=label, zorder=3)
    pairs = [(row[work], row["peers"][row["best_peer"]]) for row in rows if row["best_peer"]]
    axes.scatter(
        [w for w, _ in pairs],
        [w / us * scale for w, us in pairs],
        s=22,
        facecolors="none",
        edgecolors=color,
        linewidths=0.8,
        zorder=2,
    )


def _roof(axes: Any, work: list[int], peak: float, launch_us: float, scale: float) -> None:  # noqa: ANN401
    x = np.geomspace(min(work) / 2, max(work) * 2, 200)
    axes.plot(x, np.minimum(peak, x / launch_us * scale), color="black", linewidth=0.9)


def draw(path: Path) -> None:
    """Write the plot of the newest rows."""
    everything = read()
    rows = newest(everything)
    ceilings = [row for row in everything if row["benchmark"] == "kernel_ceilings"][-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=(3, 2))
    colors = {table: plt.get_cmap("tab20")(n) for n, table in enumerate(TABLES)}
    for table in TABLES:
        members = [row for row in rows if row["table"] == table]
        if members and table in PRODUCTS:
            _draw(right, members, "flops", 1e-6, colors[table])
        elif members:
            _draw(left, members, "bytes", 1e-3, colors[table])
    moved = [row["bytes"] for row in rows if row["table"] not in PRODUCTS]
    done = [row["flops"] for row in rows if row["table"] in PRODUCTS]
    launch_us = ceilings["launch_us"]
    for name in ("read_gbs", "copy_gbs"):
        _roof(left, moved, ceilings[name], launch_us, 1e-3)
    _roof(right, done, ceilings["tflops"], launch_us, 1e-6)
    left.set(xlabel="bytes that a call must move", ylabel="GB/s", ylim=(1, 5000))
    right.set(xlabel="operations of a call", ylabel="TFLOP/s", ylim=(20, 1200))
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.legend(fontsize=6.5, ncols=2, loc="lower right")
    figure.suptitle(f"{ceilings['device']}: ours filled, best peer hollow", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
