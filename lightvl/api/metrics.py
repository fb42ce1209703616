"""Counters, gauges and histograms of the front, in Prometheus' text format.

Names follow those that vLLM made usual, with the prefix `lightvl:`. What the engine counts comes
in its `Stats` and is written beside them.
"""

from bisect import bisect_left
from collections.abc import Mapping

PREFIX = "lightvl:"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
    *(0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Counter:
    """A number that only grows, with at most one label."""

    def __init__(self, name: str, help: str, label: str | None = None) -> None:
        self.name = name
        self.help = help
        self._label = label
        self._values: dict[str, float] = {} if label else {"": 0.0}

    def add(self, amount: float = 1.0, value: str = "") -> None:
        """Adds `amount` under the label's `value`."""
        self._values[value] = self._values.get(value, 0.0) + amount

    def value(self, value: str = "") -> float:
        """Returns what was counted under the label's `value`."""
        return self._values.get(value, 0.0)

    def lines(self) -> list[str]:
        """Returns the lines of the exposition."""
        return [
            *_head(self.name, self.help, "counter"),
            *(_sample(self.name, self._labels(key), count) for key, count in self._values.items()),
        ]

    def _labels(self, value: str) -> str:
        return f'{{{self._label}="{_escaped(value)}"}}' if self._label else ""


class Histogram:
    """A distribution by upper bounds."""

    def __init__(self, name: str, help: str, bounds: tuple[float, ...]) -> None:
        self.name = name
        self.help = help
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Counts `value`, `times` over."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self._counts)

    def lines(self) -> list[str]:
        """Returns the lines of the exposition."""
        lines = _head(self.name, self.help, "histogram")
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            lines.append(_sample(f"{self.name}_bucket", f'{{le="{bound}"}}', total))
        lines.append(_sample(f"{self.name}_sum", "", self._sum))
        lines.append(_sample(f"{self.name}_count", "", total))
        return lines


class Metrics:
    """Everything the front counts."""

    def __init__(self) -> None:
        self.finished = Counter(
            "request_success_total", "Requests that ended, by reason.", "finished_reason"
        )
        self.http_requests = Counter("http_requests_total", "HTTP answers, by status.", "status")
        self.time_to_first_token = Histogram(
            "time_to_first_token_seconds", "From arrival to the first token.", _SECONDS
        )
        self.inter_token_latency = Histogram(
            "inter_token_latency_seconds", "Between two tokens of a sequence.", _SECONDS
        )
        self.latency = Histogram(
            "e2e_request_latency_seconds", "From arrival to the last token.", _SECONDS
        )
        self.queue_time = Histogram(
            "request_queue_time_seconds", "From arrival to the start of prefill.", _SECONDS
        )
        self.request_prompt_tokens = Histogram(
            "request_prompt_tokens", "Prompt tokens of a request.", _TOKENS
        )
        self.request_generation_tokens = Histogram(
            "request_generation_tokens", "Tokens generated for a request.", _TOKENS
        )

    def render(self, gauges: Mapping[str, float], others: Mapping[str, float]) -> str:
        """Returns the exposition.

        Args:
            gauges: The front's gauges by name.
            others: Values counted elsewhere, by name, perhaps with labels
                (`image_cache_bytes{...}`); a name that ends with `_total` is a counter.
        """
        lines = []
        for metric in vars(self).values():
            lines += metric.lines()
        for name, value in gauges.items():
            lines += [*_head(name, "", "gauge"), _sample(name, "", value)]
        lines += _other_lines(others)
        return "\n".join(lines) + "\n"


def _other_lines(values: Mapping[str, float]) -> list[str]:
    lines: list[str] = []
    last = ""
    for name, value in sorted(values.items()):
        base, brace, labels = name.partition("{")
        if base != last:
            lines += _head(base, "", "counter" if base.endswith("_total") else "gauge")
            last = base
        lines.append(_sample(base, brace + labels, value))
    return lines


def _head(name: str, help: str, kind: str) -> list[str]:
    described = [f"# HELP {PREFIX}{name} {help}"] if help else []
    return [*described, f"# TYPE {PREFIX}{name} {kind}"]


def _sample(name: str, labels: str, value: float) -> str:
    number = int(value) if float(value).is_integer() else value
    return f"{PREFIX}{name}{labels} {number}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
