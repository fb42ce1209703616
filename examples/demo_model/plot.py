"""Plots loss and held-out accuracy of one or several consecutive runs.

python plot.py OUT.png RUN/report.json [RUN/report.json ...]
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from evaluate import BARS


def main(out: Path, reports: list[Path]) -> None:
    """Draws both panels over the minutes of training of all runs together."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    offset, curves = 0.0, {task: ([], []) for task in BARS}
    for path in reports:
        report = json.loads(path.read_text())
        minutes = [offset + entry["seconds"] / 60 for entry in report["loss"]]
        left.plot(minutes, [entry["loss"] for entry in report["loss"]], color="tab:blue")
        for entry in report["accuracy"]:
            for task, (x, y) in curves.items():
                if task in entry:
                    x.append(offset + entry["seconds"] / 60)
                    y.append(100 * entry[task])
        offset += report["accuracy"][-1]["seconds"] / 60
        left.axvline(offset, color="lightgray", zorder=0)
        right.axvline(offset, color="lightgray", zorder=0)
    left.set(yscale="log", xlabel="minutes", ylabel="loss (answer tokens)")
    for task, (x, y) in curves.items():
        right.plot(x, y, marker="o", markersize=3, label=task.replace("_", " "))
    right.set(xlabel="minutes", ylabel="exact match on held-out data, %", ylim=(0, 101))
    right.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
