"""The arithmetic of `lightvl bench`, its questions and its report."""

import base64
import io
import json
import random
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightvl.cli.load_client import Result, arrivals, take_event
from lightvl.cli.load_html import page
from lightvl.cli.load_report import Goals, percentile, rates, row_of, spread_ms
from lightvl.cli.loads import PRESETS, WORDS, Load, make_bodies

LOAD = Load(requests=3, concurrency=2, image=None, input_words=5, output_tokens=3)


def result(start_s: float, *event_s: float, error: str = "") -> Result:
    return Result(start_s, list(event_s), tokens=len(event_s), error=error)


@pytest.mark.parametrize("size", [1, 2, 7, 100, 1001])
@pytest.mark.parametrize("percent", [0.1, 50, 90, 95, 99, 100])
def test_percentiles_are_numpys(size: int, percent: float) -> None:
    generator = random.Random(size)
    values = sorted(generator.random() for _ in range(size))
    expected = np.percentile(values, percent, method="inverted_cdf")
    assert percentile(values, percent) == expected


def test_a_spread() -> None:
    assert spread_ms([]) == {}
    found = spread_ms([i / 1000 for i in range(100, 0, -1)])
    assert found == {"mean": 50.5, "p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}


def test_times_of_a_result() -> None:
    one = Result(1.0, [1.5, 1.75, 2.5], tokens=5)
    assert (one.ttft_s, one.e2e_s, one.tpot_s, one.gaps_s) == (0.5, 1.5, 0.25, [0.25, 0.75])
    assert Result(1.0, [1.5], tokens=1).tpot_s is None


def test_rates_and_goodput() -> None:
    results = [result(0, 1, 2, 4), result(0, 3, 5, 6), result(1, error="HTTP 500: no")]
    found = rates(results, Goals(ttft_ms=1500))
    assert found["duration_s"] == 6
    assert found["requests_per_s"] == pytest.approx(2 / 6, rel=1e-4)
    assert found["output_tokens_per_s"] == 1
    assert found["goodput_per_s"] == pytest.approx(1 / 6, rel=1e-4)
    row = row_of("own", LOAD, [results, results[:1]], Goals(ttft_ms=1500, e2e_ms=5000), 256)
    assert (row["requests"], row["errors"], row["messages"]) == (3, 1, ["HTTP 500: no"])
    assert row["requests_per_s"] == pytest.approx((2 / 6 + 1 / 4) / 2, rel=1e-4)
    assert row["goodput"]["share"] == 0.5
    assert row["tiles_per_s"] is None
    assert row["ttft_ms"]["p50"] == 1000


@pytest.mark.parametrize(
    ("goals", "kept"),
    [
        (Goals(), True),
        (Goals(ttft_ms=1000, tpot_ms=1500, e2e_ms=4000), True),
        (Goals(ttft_ms=999), False),
        (Goals(tpot_ms=1499), False),
        (Goals(e2e_ms=3999), False),
    ],
)
def test_goals(goals: Goals, kept: bool) -> None:
    assert goals.kept(result(0, 1, 2, 4)) is kept
    assert not goals.kept(result(0, error="timed out"))


def test_nothing_but_errors() -> None:
    row = row_of("own", LOAD, [[result(0, error="timed out")]], Goals(), 256)
    assert (row["requests"], row["errors"], row["ttft_ms"]) == (0, 1, {})
    assert row["requests_per_s"] == 0
    assert "timed out" in report(row, [[result(0, error="timed out")]])


def test_arrivals_are_a_poisson_process() -> None:
    times = arrivals(4001, 8.0, seed=3)
    gaps = np.diff(times)
    assert times == sorted(times)
    assert times == arrivals(4001, 8.0, seed=3)
    assert times != arrivals(4001, 8.0, seed=4)
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.06)
    assert gaps.std() == pytest.approx(1 / 8, rel=0.1)  # exponential: as wide as its mean


def test_events_of_a_stream() -> None:
    one = Result(0.0)
    take_event(one, b'{"choices": [{"delta": {"role": "assistant", "content": ""}}]}', 1.0)
    take_event(one, b'{"choices": [{"delta": {"content": "two words"}}], "usage": null}', 2.0)
    take_event(one, b'{"choices": [{"delta": {"reasoning_content": "hm"}}]}', 3.0)
    assert (one.event_s, one.tokens) == ([2.0, 3.0], 2)
    usage = {"completion_tokens": 5, "prompt_tokens": 9, "prompt_tokens_details": None}
    take_event(one, json.dumps({"choices": [], "usage": usage}).encode(), 4.0)
    assert (one.event_s, one.tokens, one.prompt_tokens) == ([2.0, 3.0], 5, 9)
    take_event(one, b'{"error": {"message": "lost"}}', 5.0)
    assert "lost" in one.error


def bodies(load: Load, seed: int = 1, count: int = 3, **how: Any) -> list[dict[str, Any]]:
    made = make_bodies(load, model="m", seed=seed, count=count, image_seed=7, **how)
    return [json.loads(body) for body in made]


def pictures(body: dict[str, Any]) -> list[bytes]:
    parts = body["messages"][1]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.removeprefix("data:image/jpeg;base64,")) for url in urls]


def test_questions_are_seeded() -> None:
    assert bodies(LOAD) == bodies(LOAD)
    texts = [body["messages"][1]["content"] for body in bodies(LOAD) + bodies(LOAD, seed=2)]
    assert len(set(texts)) == 6
    assert all(len(text.split()) == 5 and set(text.split()) <= set(WORDS) for text in texts)
    assert bodies(LOAD)[0]["ignore_eos"] is True
    assert not {"ignore_eos", "stream_options"} & set(bodies(LOAD, plain=True)[0])


@pytest.mark.parametrize("content", ["noise", "smooth"])
@pytest.mark.parametrize("same", [True, False])
def test_pictures(content: str, same: bool) -> None:
    load = Load(
        requests=2,
        concurrency=1,
        image=(60, 40),
        input_words=3,
        output_tokens=3,
        same_image=same,
        images_per_request=1 if same else 2,
    )
    files = [file for body in bodies(load, count=2, content=content) for file in pictures(body)]
    assert len(set(files)) == (1 if same else 4)
    for file in files:
        with Image.open(io.BytesIO(file)) as picture:
            assert (picture.size, picture.format) == ((60, 40), "JPEG")
    other = [f for body in bodies(load, 2, 2, content=content) for f in pictures(body)]
    assert bool(set(files) & set(other)) is same


def test_presets_are_the_published_loads() -> None:
    facts = {
        name: (p.requests, p.concurrency, p.image, p.input_words, p.output_tokens, p.same_image)
        for name, p in PRESETS.items()
    }
    assert facts == {
        "L1": (256, 32, (560, 560), 128, 32, False),
        "L2": (128, 64, (1024, 1024), 100, 100, False),
        "L3": (128, 32, (1024, 1024), 100, 100, True),
        "L4": (128, 64, None, 1024, 128, False),
        "L5": (10, 1, (448, 448), 32, 64, False),
        "L6": (128, 64, (896, 896), 100, 100, False),
        "L7": (128, 64, (1344, 896), 100, 100, False),
    }


def report(row: dict[str, Any], repetitions: list[list[Result]]) -> str:
    told: dict[str, Any] = {
        "server": "<s&rver>",
        "model": "m",
        "device": "",
        "note": "",
        "run": "now",
    }
    told |= {"client_load_average": 1.0, "command": "lightvl bench"}
    return page([(row | told, repetitions)])


def test_a_report_is_one_file() -> None:
    results = [[result(0, 1, 2, 4), result(0, 3, 5, 6)]]
    text = report(row_of("own", LOAD, results, Goals(e2e_ms=5000), 256), results)
    assert "&lt;s&amp;rver&gt;" in text
    assert "<s&rver>" not in text
    tags: dict[str, list[dict[str, str | None]]] = {}

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.setdefault(tag, []).append(dict(attrs))

    Reader().feed(text)
    assert len(tags["svg"]) == 4
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in tags["svg"])
    assert not {"script", "link", "img", "iframe"} & set(tags)
    assert "http" not in text
    assert "url(" not in text
    numbers = " ".join(line["points"] or "" for line in tags["polyline"]).replace(",", " ").split()
    assert all(0 <= float(number) <= 460 for number in numbers)
