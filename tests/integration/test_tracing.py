"""Traces of requests, as an OTLP collector receives them."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lightvl.testing.server import ServerProcess


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP endpoint on loopback and the spans that it has got."""
    spans: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", spans
        finally:
            server.shutdown()
            thread.join()


def test_a_request_has_a_span_for_each_stage() -> None:
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with collector() as (url, spans):
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        with ServerProcess(environment=settings) as server:
            parent = {"traceparent": f"00-{trace_id}-{parent_id}-01"}
            body = {"inputs": "a secret", "parameters": {"max_new_tokens": 3}}
            answer = httpx.post(server.url + "/generate", json=body, headers=parent)
            assert answer.status_code == 200
            httpx.post(server.url + "/generate", content=b"{")
    by_name = {span.name: span for span in spans if span.trace_id.hex() == trace_id}
    assert set(by_name) == {"POST /generate", "fetch", "prepare", "queue", "prefill", "decode"}
    whole = by_name["POST /generate"]
    assert whole.parent_span_id.hex() == parent_id
    stages = [by_name[name] for name in ("fetch", "prepare", "queue", "prefill", "decode")]
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        assert stage.parent_span_id == whole.span_id
        assert whole.start_time_unix_nano <= stage.start_time_unix_nano
        if following is None:
            assert stage.end_time_unix_nano <= whole.end_time_unix_nano
        else:
            assert abs(stage.end_time_unix_nano - following.start_time_unix_nano) < 1000
    values = {attribute.key: attribute.value.int_value for attribute in whole.attributes}
    assert values["http.response.status_code"] == 200
    assert values["gen_ai.usage.output_tokens"] == 3
    (refused,) = [span for span in spans if span.trace_id.hex() != trace_id]
    assert {a.key: a.value.int_value for a in refused.attributes}[
        "http.response.status_code"
    ] == 400
    assert not any("secret" in str(span) for span in spans)
