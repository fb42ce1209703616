"""The native routes against the stub engine, which echoes the prompt."""

import base64
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from lightvl.testing.server import ServerProcess

WORDS = "hello world, nice to meet you"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as process:
        yield process


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def picture(width: int = 60, height: int = 40, seed: int = 0) -> dict[str, str]:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (seed % 256, seed // 256, 77)).save(file, "PNG")
    return {"type": "base64", "data": base64.b64encode(file.getvalue()).decode()}


def generate(http: httpx.Client, inputs: Any, images: Any = None, **parameters: Any) -> Any:
    body = {"inputs": inputs, "parameters": parameters}
    if images is not None:
        body["multimodal_params"] = {"images": images}
    answer = http.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def stream(http: httpx.Client, body: dict[str, Any], path: str = "/generate_stream") -> bytes:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return answer.content


def events(data: bytes) -> list[Any]:
    parts = data.decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data:{") for part in parts)
    return [json.loads(part.removeprefix("data:")) for part in parts]


def num_tokens(http: httpx.Client, text: str) -> int:
    answer = http.post("/tokens", json={"text": text})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["ntokens"])


def test_the_whole_answer(http: httpx.Client) -> None:
    count = num_tokens(http, WORDS)
    answer = generate(http, WORDS, max_new_tokens=count)
    assert answer == {
        "generated_text": [WORDS],
        "count_output_tokens": count,
        "finish_reason": "length",
        "prompt_tokens": count,
        "input_usage": {
            "input_text_tokens": count,
            "input_image_tokens": 0,
            "input_image_cached_tokens": 0,
            "input_cached_tokens": 0,
        },
    }


def test_parameters_may_be_absent(http: httpx.Client) -> None:
    answer = http.post("/generate", json={"inputs": WORDS})
    assert answer.status_code == 200
    assert answer.json()["count_output_tokens"] == 16


def test_token_ids_as_inputs(http: httpx.Client) -> None:
    answer = generate(http, [310, 317, 78], max_new_tokens=6, return_details=True)
    assert [token["id"] for token in answer["tokens"]] == [310, 317, 78] * 2
    assert answer["prompt_tokens"] == 3


def test_details_spell_the_text(http: httpx.Client) -> None:
    answer = generate(http, "grüße 世界 🙂", max_new_tokens=40, return_details=True)
    tokens = answer["tokens"]
    assert "".join(token["text"] for token in tokens) == answer["generated_text"][0]
    assert all(token.keys() == {"id", "text", "logprob", "special"} for token in tokens)
    assert {token["logprob"] for token in tokens} == {-0.5}
    assert answer["images"] == []


def test_several_sequences(http: httpx.Client) -> None:
    answer = generate(http, WORDS, n=3, max_new_tokens=4, return_details=True)
    assert answer["generated_text"] == [answer["generated_text"][0]] * 3
    assert answer["count_output_tokens"] == [4, 4, 4]
    assert answer["finish_reason"] == ["length"] * 3
    assert [len(tokens) for tokens in answer["tokens"]] == [4, 4, 4]
    assert answer["prompt_tokens"] == num_tokens(http, WORDS)


def test_stream_byte_for_byte(http: httpx.Client) -> None:
    data = stream(http, {"inputs": [310, 317, 78], "parameters": {"max_new_tokens": 2}})
    first, last = generate(http, [310, 317, 78], max_new_tokens=2, return_details=True)["tokens"]
    text = first["text"] + last["text"]
    assert data.decode() == (
        f'data:{{"token":{{"id":310,"text":"{first["text"]}","logprob":-0.5,"special":false,'
        '"count_output_tokens":1,"prompt_tokens":3},"generated_text":null,"finished":false,'
        '"finish_reason":null,"details":null}\n\n'
        f'data:{{"token":{{"id":317,"text":"{last["text"]}","logprob":-0.5,"special":false,'
        f'"count_output_tokens":2,"prompt_tokens":3}},"generated_text":"{text}","finished":true,'
        '"finish_reason":"length","details":null}\n\n'
    )


@pytest.mark.parametrize("text", [WORDS, "grüße 世界 🙂 done"])
def test_streamed_text_equals_the_whole(http: httpx.Client, text: str) -> None:
    parameters = {"max_new_tokens": 50, "stop_sequences": ["done"]}
    found = events(stream(http, {"inputs": text, "parameters": parameters}))
    whole = generate(http, text, **parameters)
    assert "".join(event["token"]["text"] for event in found) == whole["generated_text"][0]
    assert found[-1]["generated_text"] == whole["generated_text"][0]
    assert found[-1]["finish_reason"] == whole["finish_reason"]
    assert len(found) == whole["count_output_tokens"]
    assert [event["token"]["count_output_tokens"] for event in found] == list(
        range(1, len(found) + 1)
    )
    assert [event["finished"] for event in found] == [False] * (len(found) - 1) + [True]


def test_the_root_route_picks_by_stream(http: httpx.Client) -> None:
    body = {"inputs": WORDS, "parameters": {"max_new_tokens": 3}}
    assert len(events(stream(http, {**body, "stream": True}, "/"))) == 3
    answer = http.post("/", json={**body, "stream": False})
    assert answer.json() == http.post("/", json=body).json()
    assert answer.json()["count_output_tokens"] == 3


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("nice", "hello world, nice"),
        (["zzz", "ld, n"], "hello world, n"),
        (["you", "to"], "hello world, nice to"),
    ],
)
def test_a_stop_string_stays_and_ends_the_text(http: httpx.Client, stop: Any, text: str) -> None:
    answer = generate(http, WORDS, max_new_tokens=50, stop_sequences=stop)
    assert answer["generated_text"] == [text]
    assert answer["finish_reason"] == "stop"


def test_stop_ids(http: httpx.Client) -> None:
    ids = [310, 317, 78, 370, 11]
    single = generate(http, ids, stop_sequences=[[78]], return_details=True, max_new_tokens=9)
    assert [token["id"] for token in single["tokens"]] == [310, 317, 78]
    pair = generate(http, ids, stop_sequences=[[370, 11]], return_details=True, max_new_tokens=9)
    assert [token["id"] for token in pair["tokens"]] == ids
    assert single["finish_reason"] == pair["finish_reason"] == "stop"


SPECIAL = "one two<|im_end|> three"


def test_a_stop_of_one_space_and_a_special_token_means_that_token(http: httpx.Client) -> None:
    parameters = {"max_new_tokens": 30, "ignore_eos": True}
    answer = generate(http, SPECIAL, stop_sequences=[" <|im_end|>"], **parameters)
    assert answer["generated_text"] == ["one two"]
    assert answer["finish_reason"] == "stop"
    shown = generate(
        http, SPECIAL, stop_sequences=["<|im_end|>"], skip_special_tokens=False, **parameters
    )
    assert shown["generated_text"] == ["one two<|im_end|>"]


def test_end_tokens(http: httpx.Client) -> None:
    assert generate(http, SPECIAL, max_new_tokens=30)["generated_text"] == ["one two"]
    printed = generate(http, SPECIAL, max_new_tokens=30, print_eos_token=True)
    assert printed["generated_text"] == ["one two<|im_end|>"]
    assert printed["finish_reason"] == "stop"
    count = num_tokens(http, SPECIAL)
    ignored = generate(http, SPECIAL, max_new_tokens=count, ignore_eos=True)
    assert ignored["generated_text"] == ["one two three"]
    plain = generate(
        http, SPECIAL, max_new_tokens=count, ignore_eos=True, skip_special_tokens=False
    )
    assert plain["generated_text"] == [SPECIAL]


def test_max_new_tokens_is_cut_to_what_fits(http: httpx.Client) -> None:
    most = http.get("/get_server_info").json()["max_req_total_len"]
    prompt = [310] * (most - 3)
    assert generate(http, prompt, max_new_tokens=100)["count_output_tokens"] == 3
    huge = generate(http, prompt, max_new_tokens=10**30)
    assert huge["count_output_tokens"] == 3


def test_an_unknown_key_is_served_and_warned_about_once(
    http: httpx.Client, server: ServerProcess
) -> None:
    body = {"inputs": WORDS, "parameters": {"max_new_tokens": 1, "sparkle": 1}, "glitter": 2}
    for _ in range(2):
        assert http.post("/generate", json=body).status_code == 200
    assert server.log.count("'glitter', 'sparkle'") == 1


def test_a_picture(http: httpx.Client) -> None:
    text = "a <image> b"
    parameters = {"max_new_tokens": 2, "return_details": True}
    first = generate(http, text, [picture(seed=1)], **parameters)
    again = generate(http, text, [picture(seed=1)], **parameters)
    (details,) = first["images"]
    assert (details["width"], details["height"]) == (60, 40)
    assert details["tokens"] == first["input_usage"]["input_image_tokens"] > 0
    assert not details["cached"]
    assert again["images"] == [{**details, "cached": True}]
    assert first["input_usage"]["input_image_cached_tokens"] == 0
    assert again["input_usage"]["input_image_cached_tokens"] == details["tokens"]
    usage = first["input_usage"]
    assert usage["input_text_tokens"] + usage["input_image_tokens"] == first["prompt_tokens"]


def test_pictures_and_both_placeholders(http: httpx.Client) -> None:
    pictures = [picture(seed=s) for s in (5, 6, 5)]
    answer = generate(
        http, "<image> x <img></img> y <image>", pictures, max_new_tokens=1, return_details=True
    )
    md5s = [details["md5"] for details in answer["images"]]
    assert md5s[0] == md5s[2] != md5s[1]


def test_a_body_above_64_kb_goes_through_a_media_worker(http: httpx.Client) -> None:
    file = io.BytesIO()
    Image.effect_noise((400, 300), 80).convert("RGB").save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    assert len(data) > 100_000
    images = [{"type": "base64", "data": data}]
    answer = generate(http, "see <image>", images, max_new_tokens=1, return_details=True)
    assert (answer["images"][0]["width"], answer["images"][0]["height"]) == (400, 300)
    long_text = "word " * 20_000
    refused = http.post("/generate", json={"inputs": long_text})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_chunked_bodies(http: httpx.Client) -> None:
    def chunks(data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), 10_000):
            yield data[start : start + 10_000]

    for images in ([], [picture(seed=9)] * 3, [picture(900, 700, seed=9)]):
        body = {
            "inputs": "<image>" * len(images) + "a",
            "parameters": {"max_new_tokens": 1},
            "multimodal_params": {"images": images},
            "padding": "x" * 70_000 if len(images) == 3 else "",
        }
        answer = http.post("/generate", content=chunks(json.dumps(body).encode()))
        assert answer.status_code == 200, answer.text


def test_tokens_counts_pictures_exactly(http: httpx.Client) -> None:
    text = "a <image> b"
    answer = generate(http, text, [picture(640, 480)], max_new_tokens=1)
    body: dict[str, Any] = {"text": text, "multimodal_params": {"images": [picture(640, 480)]}}
    assert http.post("/tokens", json=body).json() == {"ntokens": answer["prompt_tokens"]}
    body["multimodal_params"] = {"images": [{"type": "image_size", "data": [640, 480]}]}
    sized = http.request("GET", "/tokens", json=body)
    assert sized.json() == {"ntokens": answer["prompt_tokens"]}
    body["parameters"] = {"image_max_patch_num": 1}
    assert http.post("/tokens", json=body).json()["ntokens"] < answer["prompt_tokens"]


def test_status_routes(http: httpx.Client) -> None:
    for path in ("/health", "/healthz", "/liveness", "/readiness"):
        assert http.get(path).json() == {"status": "ok"}
        assert http.head(path).status_code in (200, 405)
    name = http.get("/get_model_name").json()["model_name"]
    assert http.get("/v1/models").json()["data"][0]["id"] == name
    assert http.get(f"/v1/models/{name}").json()["id"] == name
    assert http.get("/v1/models/other").status_code == 404
    load = http.get("/token_load").json()
    assert load.keys() == {"current_load", "logical_max_load", "dynamic_max_load"}
    info = http.get("/get_server_info").json()
    assert info["model_name"] == name
    assert "api_key" not in info


def test_documentation(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "<script" not in page.text
    loaded = re.findall(r'<(?:link|img|script|iframe)\b[^>]*?(?:href|src)="([^"]*)"', page.text)
    assert loaded == ["static/icon.svg", "static/reference.css"]
    for name in loaded:
        assert http.get("/" + name).status_code == 200
    links = re.findall(r'href="#([^"]*)"', page.text)
    assert set(links) <= set(re.findall(r'id="([^"]*)"', page.text))
    assert http.get("/docs/oauth2-redirect").status_code == 404
    document = http.get("/openapi.json").json()
    assert all(f" {path}</code>" in page.text for path in document["paths"])
    for path in ("/generate", "/generate_stream", "/tokens", "/v1/responses", "/health"):
        assert path in document["paths"]
    fields = document["components"]["schemas"]["NativeParameters"]["properties"]
    assert "temperature" in fields


def test_metrics(http: httpx.Client) -> None:
    def value(name: str) -> float:
        lines = http.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(name)).split()[-1])

    before = value('lightvl:request_success_total{finished_reason="length"}')
    generate(http, WORDS, max_new_tokens=3)
    assert value('lightvl:request_success_total{finished_reason="length"}') == before + 1
    assert value("lightvl:time_to_first_token_seconds_count") > 0
    assert value("lightvl:num_requests_running") == 0
