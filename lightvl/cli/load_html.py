"""The report of `lightvl bench`: one HTML file, its plots as SVG; nothing comes from elsewhere."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from lightvl.cli.load_client import Result

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 12, 40
MAX_POINTS = 400

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --line: #d9d9e0;
  --paper: #fff; --a: #0b68cb; --b: #b5441f; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #a0a4ad; --line: #363a3f;
  --paper: #111315; --a: #70b8ff; --b: #ff9b70; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 1 1 20rem; max-width: 30rem; } figcaption { color: var(--soft); }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font-size: 11px; }
.axis { stroke: var(--line); } .a { stroke: var(--a); fill: none; stroke-width: 2; }
.b { stroke: var(--b); fill: none; stroke-width: 2; } circle.a { fill: var(--a); stroke: none; }
text.a { fill: var(--a); stroke: none; } text.b { fill: var(--b); stroke: none; }
.error { color: var(--b); }
"""

Points = Sequence[tuple[float, float]]


def page(loads: Sequence[tuple[dict[str, Any], Sequence[Sequence[Result]]]]) -> str:
    """Returns the report of one run.

    Args:
        loads: Of each load its row, and the results of its repetitions.
    """
    rows = [row for row, _ in loads]
    head = rows[0]
    title = f"Load on {head['server'] or head['model']}"
    facts = {
        "model": head["model"],
        "device": head["device"],
        "run": head["run"],
        "note": head["note"],
        "load average of the client's machine": head["client_load_average"],
        "command": head["command"],
    }
    listed = "".join(
        f"<dt>{escape(name)}<dd>{escape(str(value))}" for name, value in facts.items() if value
    )
    sections = "".join(_section(row, repetitions) for row, repetitions in loads)
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{escape(title)}</h1><dl>{listed}</dl>{_summary(rows)}{sections}</html>\n"
    )


def _summary(rows: Sequence[dict[str, Any]]) -> str:
    head = ("load", "requests/s", "tokens/s", "TTFT p50", "TTFT p99", "TPOT p50", "e2e p50")
    body = "".join(
        _table_row(
            row["load"],
            *(
                _number(value)
                for value in (
                    row["requests_per_s"],
                    row["output_tokens_per_s"],
                    row["ttft_ms"].get("p50"),
                    row["ttft_ms"].get("p99"),
                    row["tpot_ms"].get("p50"),
                    row["e2e_ms"].get("p50"),
                )
            ),
            str(row["errors"]),
        )
        for row in rows
    )
    names = "".join(f"<th scope=col>{name}" for name in (*head, "errors"))
    return f"<div class=wide><table><tr>{names}{body}</table></div><p>Times in milliseconds."


def _section(row: dict[str, Any], repetitions: Sequence[Sequence[Result]]) -> str:
    good = [[result for result in results if not result.error] for results in repetitions]
    every = [result for results in good for result in results]
    out = f"<h2>{escape(row['load'])}</h2><p>{escape(_in_words(row))}</p>"
    for message in row["messages"]:
        out += f"<p class=error>{escape(message)}</p>"
    if goodput := row.get("goodput"):
        goals = (f"{name.split('_')[0]} at most {ms:g} ms" for name, ms in goodput["goals"].items())
        out += (
            f"<p>Goodput: {_number(goodput['requests_per_s'])} requests/s; "
            f"{100 * goodput['share']:.1f} % of all kept {', '.join(goals)}.</p>"
        )
    if not every:
        return out
    out += _times(row)
    first = [result.ttft_s for result in every]
    whole = [result.e2e_s for result in every]
    gaps = [gap for result in every for gap in result.gaps_s]
    plots = [
        _plot(
            "Time to first token, and of the whole request: share of requests that took no longer",
            [("TTFT", _cumulative(first)), ("e2e", _cumulative(whole))],
            "ms",
            "share",
        ),
        _plot(
            "Gaps between events: share that were no longer",
            [("ITL", _cumulative(gaps))],
            "ms",
            "share",
        ),
        _plot(
            "Time to first token by when the request was sent",
            [("TTFT", [p for results in good for p in _by_start(results)])],
            "s",
            "ms",
            dots=True,
        ),
        _plot(
            "Requests under way",
            [("", _under_way(good[0]))],
            "s",
            "requests",
        ),
    ]
    return out + f"<div class=plots>{''.join(plots)}</div>"


def _in_words(row: dict[str, Any]) -> str:
    load = row["config"]
    images = load["images_per_request"]
    parts = [
        f"{load['requests']} requests a repetition, {len(row['repetitions'])} of these",
        f"Poisson arrivals, {load['rate']:g} a second"
        if load["rate"]
        else f"{load['concurrency']} under way at once",
        "text alone"
        if not load["image"]
        else f"{images} picture(s) of {load['image'][0]}x{load['image'][1]}"
        + (", the same for all" if load["same_image"] else ""),
        f"{load['input_words']} words in, {load['output_tokens']} tokens out",
        f"{row['prompt_tokens']:g} prompt tokens in the mean",
        f"{row['short_outputs']} answers shorter than asked",
    ]
    return "; ".join(parts) + "."


def _times(row: dict[str, Any]) -> str:
    columns = list(row["ttft_ms"])
    names = "".join(f"<th scope=col>{name}" for name in ["ms", *columns])
    body = "".join(
        _table_row(label, *(_number(row[key].get(column)) for column in columns))
        for key, label in (
            ("ttft_ms", "TTFT"),
            ("tpot_ms", "TPOT"),
            ("itl_ms", "ITL"),
            ("e2e_ms", "e2e"),
        )
    )
    return f"<div class=wide><table><tr>{names}{body}</table></div>"


def _table_row(name: str, *cells: str) -> str:
    return f"<tr><td>{escape(name)}" + "".join(f"<td>{cell}" for cell in cells)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def _cumulative(values_s: Sequence[float]) -> list[tuple[float, float]]:
    """Returns (milliseconds, share of values that are no larger), thinned out for drawing."""
    ordered = sorted(values_s)
    step = max(1, len(ordered) // MAX_POINTS)
    kept = [*range(0, len(ordered), step), len(ordered) - 1] if ordered else []
    return [(1000 * ordered[i], (i + 1) / len(ordered)) for i in kept]


def _by_start(results: Sequence[Result]) -> list[tuple[float, float]]:
    begin_s = min((result.start_s for result in results), default=0.0)
    return [(result.start_s - begin_s, 1000 * result.ttft_s) for result in results]


def _under_way(results: Sequence[Result]) -> list[tuple[float, float]]:
    """Returns (seconds, requests) as steps: two points for every request that comes or goes."""
    begin_s = min((result.start_s for result in results), default=0.0)
    changes = [(result.start_s - begin_s, 1) for result in results]
    changes += [(result.event_s[-1] - begin_s, -1) for result in results]
    points, now = [], 0
    for at_s, change in sorted(changes):
        points += [(at_s, float(now)), (at_s, float(now + change))]
        now += change
    return points


def _plot(
    caption: str,
    series: Sequence[tuple[str, Points]],
    x_unit: str,
    y_unit: str,
    dots: bool = False,
) -> str:
    """Returns a figure: lines or dots over axes that begin at 0."""
    points = [point for _, line in series for point in line]
    if not points:
        return ""
    x_max = _round_up(max(x for x, _ in points))
    y_max = 1.0 if y_unit == "share" else _round_up(max(y for _, y in points))

    def place(x: float, y: float) -> str:
        left = LEFT + x / x_max * (WIDTH - LEFT - RIGHT)
        return f"{left:.1f},{HEIGHT - BOTTOM - y / y_max * (HEIGHT - TOP - BOTTOM):.1f}"

    parts = [_axes(x_max, y_max, x_unit, y_unit)]
    for index, (name, line) in enumerate(series):
        look = "ab"[index]
        if dots:
            for point in line:
                x, y = place(*point).split(",")
                parts.append(f"<circle class={look} cx={x} cy={y} r=2.5 />")
        else:
            parts.append(
                f"<polyline class={look} points='{' '.join(place(*point) for point in line)}' />"
            )
        label_y = TOP + 14 + 16 * index
        parts.append(
            f"<text class={look} x={WIDTH - RIGHT - 4} y={label_y} text-anchor=end>{name}</text>"
        )
    return (
        f"<figure><svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='{escape(caption)}'>"
        f"{''.join(parts)}</svg><figcaption>{escape(caption)}</figcaption></figure>"
    )


def _axes(x_max: float, y_max: float, x_unit: str, y_unit: str) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for step in range(5):
        x = LEFT + step / 4 * (right - LEFT)
        y = bottom - step / 4 * (bottom - TOP)
        parts.append(f"<line class=axis x1={LEFT} x2={right} y1={y:.1f} y2={y:.1f} />")
        parts.append(
            f"<text x={x:.1f} y={bottom + 15} text-anchor=middle>{x_max * step / 4:g}</text>"
        )
        parts.append(
            f"<text x={LEFT - 6} y={y + 4:.1f} text-anchor=end>{y_max * step / 4:g}</text>"
        )
    parts.append(f"<text x={right} y={HEIGHT - 8} text-anchor=end>{x_unit}</text>")
    parts.append(f"<text x=4 y={HEIGHT - 8}>{y_unit}</text>")
    return "".join(parts)


def _round_up(value: float) -> float:
    """Returns the next of 1, 2, 4, 8 times a power of ten, so that quarters are short numbers."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * digit for digit in (1, 2, 4, 8, 10) if value <= power * digit * 1.0000001)
