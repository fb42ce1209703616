"""The whole road: HTTP, front, media workers, engine and the bundled model, on the CPU."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image, ImageDraw

from lightvl.testing.server import ENGINE, ServerProcess

ROOT = Path(__file__).parents[2]
QUESTION = "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    flags = ["--max_total_token_num", "16384", "--cache_capacity", "8"]
    with ServerProcess(*flags, engine=ENGINE, environment=environment) as process:
        yield process


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def drawing(seed: int) -> bytes:
    """A PNG of a circle on a background; both colours follow from the seed."""
    image = Image.new("RGB", (200, 160), (seed * 37 % 256, seed * 91 % 256, 200))
    box = (40 + seed, 30, 150, 130)
    ImageDraw.Draw(image).ellipse(box, fill=(250 - seed * 10, 30, seed * 20))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def images(*pngs: bytes) -> dict[str, Any]:
    items = [{"type": "base64", "data": base64.b64encode(png).decode()} for png in pngs]
    return {"images": items}


def ask(http: httpx.Client, png: bytes | None, **parameters: Any) -> Any:
    body: dict[str, Any] = {"inputs": QUESTION, "multimodal_params": images(png or b"")}
    if png is None:
        body = {"inputs": QUESTION.replace("<image>\n", "")}
    body["parameters"] = {"max_new_tokens": 12, "return_details": True, **parameters}
    answer = http.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(answer: Any) -> Any:
    """What an answer says, caches and timing aside."""
    return answer["generated_text"], [token["id"] for token in answer["tokens"]]


def test_the_specifications_client(server: ServerProcess) -> None:
    source = (ROOT / "examples" / "spec_client.py").read_text()
    source, count = re.subn(r"http://127\.0\.0\.1:8000", server.url, source)
    assert count == 1
    command = [sys.executable, "-c", source]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.startswith("Result: {'generated_text': ['"), result.stdout
    assert "'finish_reason': 'stop'" in result.stdout


def test_a_second_question_about_a_picture_finds_it_cached(http: httpx.Client) -> None:
    first, again = ask(http, drawing(1)), ask(http, drawing(1))
    assert said(first) == said(again)
    assert first["images"][0]["cached"] is False
    assert again["images"][0]["cached"] is True
    usage = again["input_usage"]
    assert usage["input_image_cached_tokens"] == usage["input_image_tokens"] > 0


def test_different_pictures_differ(http: httpx.Client) -> None:
    logprobs = {
        tuple(token["logprob"] for token in ask(http, drawing(seed))["tokens"])
        for seed in range(2, 5)
    }
    assert len(logprobs) == 3


def test_alone_equals_batched_and_evicted(http: httpx.Client) -> None:
    alone = [ask(http, drawing(seed)) for seed in range(10, 22)]
    with ThreadPoolExecutor(12) as pool:
        batched = list(pool.map(lambda seed: ask(http, drawing(seed)), range(10, 22)))
    assert [said(answer) for answer in batched] == [said(answer) for answer in alone]


def test_streamed_equals_whole(http: httpx.Client) -> None:
    whole = ask(http, drawing(3), do_sample=True, seed=11, temperature=1.5)
    body = {
        "inputs": QUESTION,
        "multimodal_params": images(drawing(3)),
        "parameters": {"max_new_tokens": 12, "do_sample": True, "seed": 11, "temperature": 1.5},
    }
    lines = http.post("/generate_stream", json=body).text.split("\n\n")
    events = [json.loads(line.removeprefix("data:")) for line in lines if line]
    assert [event["token"]["id"] for event in events] == said(whole)[1]
    assert events[-1]["generated_text"] == whole["generated_text"][0]


def test_n_sequences_equal_n_runs_with_the_next_seeds(http: httpx.Client) -> None:
    parameters = {"do_sample": True, "temperature": 1.5, "top_p": 0.95}
    together = ask(http, drawing(5), n=3, seed=40, **parameters)
    apart = [ask(http, drawing(5), seed=40 + k, **parameters) for k in range(3)]
    assert together["generated_text"] == [answer["generated_text"][0] for answer in apart]
    assert len(set(together["generated_text"])) > 1
    greedy = ask(http, drawing(5), n=3)
    assert len(set(greedy["generated_text"])) == 1


def test_text_only(http: httpx.Client) -> None:
    answer = ask(http, None)
    assert answer["count_output_tokens"] == len(answer["tokens"])
    assert answer["input_usage"]["input_image_tokens"] == 0
    assert all(token["logprob"] <= 0 for token in answer["tokens"])


def test_two_pictures_in_one_request(http: httpx.Client) -> None:
    body = {
        "inputs": "<image> and <img></img>?",
        "multimodal_params": images(drawing(6), drawing(7)),
        "parameters": {"max_new_tokens": 4, "return_details": True},
    }
    answer = http.post("/generate", json=body).json()
    assert len(answer["images"]) == 2
    tokens = http.post(
        "/tokens", json={"text": body["inputs"], "multimodal_params": body["multimodal_params"]}
    ).json()
    assert tokens["ntokens"] == answer["prompt_tokens"]


def test_more_pictures_than_the_cache_holds(http: httpx.Client) -> None:
    body = {"inputs": "<image>" * 9, "multimodal_params": images(*map(drawing, range(9)))}
    answer = http.post("/generate", json=body)
    assert answer.status_code == 400
    assert "9 pictures, expected at most 8" in answer.json()["message"]


def test_a_picture_broken_inside_fails_its_own_request(http: httpx.Client) -> None:
    broken = bytearray(drawing(8))
    broken[len(broken) // 2] ^= 0xFF
    body = {"inputs": QUESTION, "multimodal_params": images(bytes(broken))}
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(ask, http, drawing(9))
        refused = http.post("/generate", json=body)
        assert refused.status_code == 400, refused.text
        assert "images[0]" in refused.json()["message"]
        assert good.result()["generated_text"]


def test_leaving_clients_leave_nothing_running(http: httpx.Client, server: ServerProcess) -> None:
    body = {
        "inputs": QUESTION,
        "multimodal_params": images(drawing(30)),
        "parameters": {"max_new_tokens": 2000, "ignore_eos": True},
    }
    for _ in range(3):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + "/generate", json=body, timeout=0.2)
    ends_s = time.monotonic() + 30
    while not _is_idle(http.get("/metrics").text):
        assert time.monotonic() < ends_s, "aborted requests are still there"
        time.sleep(0.05)
    assert ask(http, drawing(30))["generated_text"]


def _is_idle(metrics: str) -> bool:
    gauges = ("num_requests_running", "num_requests_waiting", "num_requests_queued")
    return all(f"\nlightvl:{name} 0.0\n" in metrics for name in gauges)


def test_the_openai_client(server: ServerProcess) -> None:
    url = "data:image/png;base64," + base64.b64encode(drawing(12)).decode()
    messages: Any = [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": "What is this?"},
            ],
        }
    ]
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none") as client:
        model = client.models.list().data[0].id
        options: Any = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 12}
        whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=3)
        text = "".join(
            chunk.choices[0].delta.content or ""
            for chunk in client.chat.completions.create(**options, stream=True)
        )
    assert text == whole.choices[0].message.content != ""
    assert whole.choices[0].logprobs is not None
    for token in whole.choices[0].logprobs.content or []:
        assert token.top_logprobs[0].token == token.token
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob, abs=1e-5)
        assert len(token.top_logprobs) == 3


def test_the_caches_are_counted(http: httpx.Client) -> None:
    text = http.get("/metrics").text
    for name in ("image_cache_hits_total", "image_cache_misses_total", "image_cache_images"):
        assert f"\nlightvl:{name} " in text
    assert 'lightvl:image_cache_bytes{tier="' in text
