"""Counters, gauges and histograms of the front, in Prometheus' text format.

Names follow those that vLLM made usual, with the prefix `lightvl:`. What the engine counts comes
in its `Stats` and is written beside them.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX = "lightvl:"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
    *(0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """Everything the front counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.finished = self._counter(
            "request_success", "Requests that ended, by reason.", "finished_reason"
        )
        self.http_requests = self._counter("http_requests", "HTTP answers, by status.", "status")
        self.rejected = self._counter(
            "request_rejected", "Requests answered with an error, by its code or status.", "reason"
        )
        self.time_to_first_token = self._seconds(
            "time_to_first_token", "From arrival to the first token."
        )
        self.inter_token_latency = self._seconds(
            "inter_token_latency", "Between two tokens of a sequence."
        )
        self.latency = self._seconds("e2e_request_latency", "From arrival to the last token.")
        self.queue_time = self._seconds(
            "request_queue_time", "From arrival to the start of prefill."
        )
        self.image_fetch_time = self._seconds(
            "image_fetch", "From asking for a picture at its address to its last byte."
        )
        self.image_decode_time = self._seconds(
            "image_decode", "From asking for a picture's pixels to having them, waits included."
        )
        self.stage_time = Histogram(
            PREFIX + "request_stage_seconds",
            "Stages of an answered request; each begins where the one before ends.",
            ("stage",),
            registry=self._registry,
            buckets=_SECONDS,
        )
        self.request_prompt_tokens = self._tokens(
            "request_prompt_tokens", "Prompt tokens of a request."
        )
        self.request_generation_tokens = self._tokens(
            "request_generation_tokens", "Tokens generated for a request."
        )
        self._elsewhere = _Elsewhere()
        self._registry.register(self._elsewhere)

    def observe_media(self, stage: Literal["fetch", "decode"], seconds: float) -> None:
        """Counts how long a picture's fetch or decoding took."""
        times = {"fetch": self.image_fetch_time, "decode": self.image_decode_time}
        times[stage].observe(seconds)

    def observe_stages(self, seconds: Mapping[str, float]) -> None:
        """Counts how long the stages of an answered request took."""
        for stage, stage_s in seconds.items():
            if stage != "total":
                self.stage_time.labels(stage).observe(stage_s)

    def render(self, values: Mapping[str, float]) -> bytes:
        """Returns the exposition.

        Args:
            values: What is counted elsewhere, by name, perhaps with one label
                (`image_cache_bytes{tier="gpu"}`); a name that ends with `_total` is a counter.
        """
        self._elsewhere.values = values
        return generate_latest(self._registry)

    def _counter(self, name: str, help: str, label: str) -> Counter:
        return Counter(PREFIX + name, help, (label,), registry=self._registry)

    def _seconds(self, name: str, help: str) -> Histogram:
        return self._histogram(f"{name}_seconds", help, _SECONDS)

    def _tokens(self, name: str, help: str) -> Histogram:
        return self._histogram(name, help, _TOKENS)

    def _histogram(self, name: str, help: str, bounds: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, help, registry=self._registry, buckets=bounds)


class _Elsewhere(Collector):
    """Values that others count, as metrics."""

    def __init__(self) -> None:
        self.values: Mapping[str, float] = {}

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for key, value in self.values.items():
            name, _, label = key.rstrip("}").partition("{")
            labels = dict(part.split("=", 1) for part in label.split(",") if part)
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = families.setdefault(name, kind(PREFIX + name, _HELP.get(name, name)))
            sample = PREFIX + name
            family.add_sample(sample, {k: v.strip('"') for k, v in labels.items()}, value)
        yield from families.values()


_HELP = {
    "num_requests_queued": "Requests that have arrived and whose first token hasn't come.",
    "num_tokens_queued": "Prompt tokens of those.",
    "event_loop_tasks": "Tasks of the front's event loop.",
    "media_workers": "Decoder processes.",
    "media_workers_lost_total": "Decoder processes that died or were killed, and replaced.",
    "image_cache_images_in_use": "Pictures in the cache that a request holds.",
    "media_bytes": "Bytes of the arena in use, by what for.",
    "image_identity_conflicts_total": "Pictures with the MD5 of another one and other bytes.",
}
