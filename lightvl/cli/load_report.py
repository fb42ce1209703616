"""What `lightvl bench` makes of its results: percentiles, goodput, one row a load."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from lightvl.cli.load_client import Result
from lightvl.cli.loads import Load

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Goals:
    """What a request must keep to count for goodput; None asks for nothing."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in asdict(self).values())

    def kept(self, result: Result) -> bool:
        """Whether a request succeeded within every goal."""
        if result.error:
            return False
        took = (result.ttft_s, result.tpot_s or 0.0, result.e2e_s)
        goals = (self.ttft_ms, self.tpot_ms, self.e2e_ms)
        return all(goal is None or 1000 * s <= goal for s, goal in zip(took, goals, strict=True))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Returns the smallest value that at least `percent` of all don't exceed (nearest rank).

    Args:
        ordered: The values, ascending; at least one.
        percent: Above 0, at most 100.
    """
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def spread_ms(values_s: Sequence[float]) -> dict[str, float]:
    """Returns mean, percentiles and maximum in milliseconds; empty where there is no value."""
    ordered = sorted(values_s)
    if not ordered:
        return {}
    found = {"mean": sum(ordered) / len(ordered)}
    found |= {f"p{percent}": percentile(ordered, percent) for percent in PERCENTILES}
    found["max"] = ordered[-1]
    return {name: round(1000 * value, 3) for name, value in found.items()}


def rates(results: Sequence[Result], goals: Goals) -> dict[str, float]:
    """Returns what one repetition got done a second, from its first request to its last text."""
    good = [result for result in results if not result.error]
    if not good:
        return {"duration_s": 0.0, "requests_per_s": 0.0, "output_tokens_per_s": 0.0}
    begin_s = min(result.start_s for result in results)
    span_s = max(result.event_s[-1] for result in good) - begin_s
    found = {
        "duration_s": span_s,
        "requests_per_s": len(good) / span_s,
        "output_tokens_per_s": sum(result.tokens for result in good) / span_s,
    }
    if image_tokens := sum(result.image_tokens for result in good):
        found["image_tokens_per_s"] = image_tokens / span_s
    if goals:
        found["goodput_per_s"] = sum(goals.kept(result) for result in results) / span_s
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def row_of(
    name: str, load: Load, repetitions: Sequence[Sequence[Result]], goals: Goals, tile_tokens: int
) -> dict[str, Any]:
    """Returns one load's row: times over all repetitions, rates as medians over them."""
    every = [result for results in repetitions for result in results]
    good = [result for result in every if not result.error]
    each = [rates(results, goals) for results in repetitions]
    image_rates = [r["image_tokens_per_s"] for r in each if "image_tokens_per_s" in r]
    row: dict[str, Any] = {
        "benchmark": "serving",
        "load": name,
        "config": asdict(load),
        "requests_per_s": median(r["requests_per_s"] for r in each),
        "output_tokens_per_s": median(r["output_tokens_per_s"] for r in each),
        "tiles_per_s": round(median(image_rates) / tile_tokens, 3) if image_rates else None,
        "ttft_ms": spread_ms([result.ttft_s for result in good]),
        "tpot_ms": spread_ms([r.tpot_s for r in good if r.tpot_s is not None]),
        "itl_ms": spread_ms([gap for result in good for gap in result.gaps_s]),
        "e2e_ms": spread_ms([result.e2e_s for result in good]),
        "requests": len(good),
        "errors": len(every) - len(good),
        "messages": sorted({result.error for result in every if result.error})[:5],
        "short_outputs": sum(result.tokens < load.output_tokens for result in good),
        "prompt_tokens": round(sum(r.prompt_tokens for r in good) / max(1, len(good)), 1),
        "repetitions": each,
    }
    if goals:
        kept = sum(goals.kept(result) for result in every)
        row["goodput"] = {
            "goals": {k: v for k, v in asdict(goals).items() if v is not None},
            "requests_per_s": median(r.get("goodput_per_s", 0.0) for r in each),
            "share": round(kept / max(1, len(every)), 4),
        }
    return row
