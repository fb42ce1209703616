"""Stage timings: the header, the stream's usage, the histograms; and the sums that they make."""

import base64
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lightvl.testing.server import ENGINE, ServerProcess

FACE = (Path(__file__).parents[2] / "examples/face.png").read_bytes()
TEXT_STAGES = ["fetch", "prepare", "queue", "prefill", "decode"]
OF_PICTURES = ["image_decode", "preprocess", "vision"]
STAGES = ["fetch", "prepare", "queue", *OF_PICTURES, "prefill", "decode"]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    environment = {"OMP_NUM_THREADS": "1"}
    with (
        ServerProcess(
            "--max_total_token_num", "16384", engine=ENGINE, environment=environment
        ) as s,
        httpx.Client(base_url=s.url, timeout=60) as client,
    ):
        yield client


def chat(text: str, *, picture: bytes | None = None, **fields: object) -> dict[str, object]:
    content: list[object] = [{"type": "text", "text": text}]
    if picture is not None:
        url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 8, **fields}


def header_of(answer: httpx.Response) -> dict[str, float]:
    """The header's stages, in milliseconds."""
    assert answer.status_code == 200, answer.text
    value = answer.headers["server-timing"]
    assert re.fullmatch(r"\w+;dur=\d+\.\d{3}(, \w+;dur=\d+\.\d{3})*", value)
    pairs = (part.split(";dur=") for part in value.split(", "))
    return {name: float(ms) for name, ms in pairs}


def usage_of(answer: httpx.Response) -> Any:
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    return json.loads(events[-2])["usage"]


def test_answers_carry_server_timing(http: httpx.Client) -> None:
    for path, body in (
        ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 4}}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 4}),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 4}),
        ("/v1/chat/completions", chat("Hello")),
    ):
        begin_s = time.monotonic()
        times = header_of(http.post(path, json=body))
        spent_ms = 1000 * (time.monotonic() - begin_s)
        assert list(times) == [*TEXT_STAGES, "total"]
        assert times["total"] <= spent_ms
        assert max(times.values()) == times["total"]
    assert "server-timing" not in http.post("/tokens", json={"text": "a"}).headers


def test_a_pictures_stages_are_there_once(http: httpx.Client) -> None:
    picture = FACE + b"1"
    first = header_of(http.post("/v1/chat/completions", json=chat("Hi", picture=picture)))
    assert list(first) == [*STAGES, "total"]
    assert all(first[name] > 0 for name in (*OF_PICTURES, "prefill", "decode"))
    assert sum(first[name] for name in STAGES) == pytest.approx(first["total"], abs=0.01)
    again = header_of(http.post("/v1/chat/completions", json=chat("Hi", picture=picture)))
    assert list(again) == [*TEXT_STAGES, "total"]


def test_streams_tell_it_in_the_last_usage(http: httpx.Client) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for cached, stages in ((False, STAGES), (True, TEXT_STAGES)):
        body = chat("Hi", picture=FACE + b"2", **options)
        details = usage_of(http.post("/v1/chat/completions", json=body))["lightvl"]
        times = details["timings_ms"]
        assert list(times) == [*stages, "total"]
        assert sum(times[name] for name in stages) == pytest.approx(times["total"], abs=0.1)
        (image,) = details["images"]
        assert len(image.pop("md5")) == 32
        assert image == {
            "width": 256, "height": 256, "cols": 1, "rows": 1, "thumbnail": False,
            "tiles": 1, "tokens": 64, "cached": cached,
        }  # fmt: skip
    answer = http.post("/v1/chat/completions", json=chat("Hi", stream=True))
    assert "timings_ms" not in answer.text


def test_the_same_stages_are_histograms(http: httpx.Client) -> None:
    def counts() -> dict[str, float]:
        pattern = r'^lightvl:request_stage_seconds_count\{stage="(\w+)"\} (\S+)$'
        found = re.findall(pattern, http.get("/metrics").text, re.M)
        return {stage: float(value) for stage, value in found}

    before = counts()
    http.post("/v1/chat/completions", json=chat("Hi", picture=FACE + b"3"))
    after = counts()
    assert set(after) == set(STAGES)
    assert {after[stage] - before.get(stage, 0) for stage in STAGES} == {1}


def test_waiting_for_another_requests_picture_is_vision(http: httpx.Client) -> None:
    """Two requests with one new picture: it is computed once, and both tell of waiting for it."""
    import threading

    answers: list[httpx.Response] = []
    body = chat("Hi", picture=FACE + b"4")

    def ask() -> None:
        url = f"{http.base_url}/v1/chat/completions"
        answers.append(httpx.post(url, json=body, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [header_of(answer) for answer in answers]
    assert sum("image_decode" in times for times in found) == 1
    for times in found:
        known = [name for name in times if name != "total"]
        assert sum(times[name] for name in known) == pytest.approx(times["total"], abs=0.01)
