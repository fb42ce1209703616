"""OpenTelemetry spans of requests: one for the request, one for each stage of each generation.

Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set; needs the extra `otel`. The SDK's own variables
(`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, ...) hold. Spans are made when a request has ended,
from the times that were noted on the way, so that a request costs nothing while it runs. They
carry sizes and times, never what prompts or pictures contain.
"""

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lightvl.api.generation import Generation
from lightvl.api.timings import stages
from lightvl.errors import StartupError
from lightvl.utils.env import wants_tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


class Tracing:
    """Makes spans and hands them to the exporter, which sends them from a thread of its own."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("lightvl")
        self._propagator = TraceContextTextMapPropagator()

    def record(
        self,
        path: str,
        headers: Mapping[str, str],
        began_s: float,
        status: int,
        generations: Iterable[Generation],
    ) -> None:
        """Makes the spans of a request that has just ended.

        Args:
            path: The route.
            headers: With the client's `traceparent`, if it sent one.
            began_s: When the request came, by the monotonic clock.
            status: Of the answer, 0 if there was none.
            generations: What was generated for it.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        offset_ns = time.time_ns() - time.monotonic_ns()
        now_s = time.monotonic()

        def ns(seconds: float) -> int:
            return int(seconds * 1e9) + offset_ns

        request = self._tracer.start_span(
            f"POST {path}",
            self._propagator.extract(headers),
            SpanKind.SERVER,
            {"http.route": path, "http.response.status_code": status},
            start_time=ns(began_s),
        )
        inside = set_span_in_context(request)
        for generation in generations:
            for name, begin_s, end_s in stages(generation, now_s):
                span = self._tracer.start_span(name, inside, start_time=ns(begin_s))
                span.end(ns(end_s))
            request.set_attribute("gen_ai.usage.input_tokens", generation.num_prompt_tokens)
            tokens = sum(sequence.num_tokens for sequence in generation.sequences)
            request.set_attribute("gen_ai.usage.output_tokens", tokens)
            request.set_attribute("lightvl.images", len(generation.prepared.images))
        if status >= 500:
            request.set_status(Status(StatusCode.ERROR))
        request.end(ns(now_s))

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


def tracing_from_environment() -> Tracing | None:
    """Returns what the environment asks for, or None.

    Raises:
        StartupError: It asks for traces and the packages are missing.
    """
    if not wants_tracing():
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise StartupError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set: install lightvl-server[otel] for traces"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "lightvl"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
