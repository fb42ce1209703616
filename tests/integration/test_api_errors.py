"""Every refusal of the interface: status, shape, the field's name, and the server serves on."""

import base64
import io
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from lightvl.testing.server import ServerProcess

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
IMAGE = {"type": "base64", "data": PIXEL}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    flags = ["--max_images", "3", "--max_body_bytes", "300000", "--max_req_total_len", "500"]
    with ServerProcess(*flags) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(autouse=True)
def _serves_on(http: httpx.Client) -> Iterator[None]:
    yield
    answer = http.post("/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 1}})
    assert answer.status_code == 200


def check(answer: httpx.Response, status: int, param: str | None = None) -> Any:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body.keys() == {"error", "message"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["message"] == body["error"]["message"] != ""
    if param is not None:
        assert body["error"]["param"].partition("[")[0] == param
        assert param in body["message"]
    return body["error"]


PARAMETERS: list[tuple[str, list[Any]]] = [
    ("do_sample", [1, "true"]),
    ("temperature", [-0.1, "1", True]),
    ("top_p", [0, -0.5, 1.01, "1"]),
    ("top_k", [0, -2, 1.5, "5", True]),
    ("min_p", [-0.1, 1.1]),
    ("presence_penalty", [-2.1, 2.1, "a"]),
    ("frequency_penalty", [-2.1, 2.1]),
    ("repetition_penalty", [0, -1]),
    ("input_penalty", [1]),
    ("max_new_tokens", [0, -1, 1.5, "3"]),
    ("min_new_tokens", [0, -1, 17]),
    ("ignore_eos", ["x"]),
    ("stop_sequences", ["", [""], [[]], [1], 3, [["a"]], [[10**9]], [[-1]], {"a": 1}]),
    ("n", [0, 9, "2"]),
    ("best_of", [0, 9, 2]),
    ("seed", ["a", 1.5, 2**63, -(2**63) - 1]),
    ("skip_special_tokens", [1]),
    ("add_special_tokens", [1]),
    ("add_spaces_between_special_tokens", [1]),
    ("print_eos_token", [1]),
    ("image_max_patch_num", [-2, 257, "a"]),
    ("return_details", [1]),
    ("logit_bias", [{"1": 101}, {"1": -101}, {"-1": 0}, {str(10**9): 0}, {"a": 1}, [1]]),
    ("allowed_token_ids", [[], [-1], [10**9], ["a"], 5]),
    ("regular_constraint", ["", "(a", r"(a)\1", "(?=a)b", "a" * 65537, ["a"]]),
    ("guided_grammar", ["", "root ::= x", "start: x", "((", 5]),
    ("guided_json", ["", "{", [], 5, {"type": "array", "uniqueItems": True}, {"type": "x"}]),
    ("timeout_s", [0, -1, "1", 1e300]),
]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in PARAMETERS for value in values]
)
def test_native_parameters(http: httpx.Client, name: str, value: Any) -> None:
    for path in ("/generate", "/generate_stream", "/"):
        parameters = {name: value} if name != "best_of" else {"n": 1, name: value}
        if path == "/generate_stream" and name == "best_of" and value == 2:
            parameters["n"] = 1
        check(http.post(path, json={"inputs": "a", "parameters": parameters}), 400, name)


def test_a_stream_of_several_sequences(http: httpx.Client) -> None:
    body = {"inputs": "a", "parameters": {"n": 2}}
    check(http.post("/generate_stream", json=body), 400, "n")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "inputs"),
        ({"inputs": 5}, "inputs"),
        ({"inputs": [-1]}, "inputs"),
        ({"inputs": [10**9]}, "inputs"),
        ({"inputs": "a", "parameters": []}, "parameters"),
        ({"inputs": "a", "stream": 1}, "stream"),
        ({"inputs": "a", "multimodal_params": []}, "multimodal_params"),
        ({"inputs": "a", "multimodal_params": {"images": {}}}, "multimodal_params.images"),
    ],
)
def test_native_bodies(http: httpx.Client, body: Any, param: str) -> None:
    check(http.post("/generate", json=body), 400, param)


@pytest.mark.parametrize("inputs", ["", []])
def test_empty_prompts(http: httpx.Client, inputs: Any) -> None:
    error = check(http.post("/generate", json={"inputs": inputs}), 400, "inputs")
    assert "empty" in error["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b'{"inputs": "\\ud800"}', b"[" * 60_000, b'{"inputs": NaN}',
     b'{"inputs": "a", "inputs": "b"}', b"5", b'{"inputs": "a"}}'],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/generate", "/tokens", "/v1/completions"])
def test_malformed_json(http: httpx.Client, path: str, body: bytes) -> None:
    check(http.post(path, content=body), 400)


def test_malformed_json_above_64_kb(http: httpx.Client) -> None:
    for body in (b"{" + b" " * 70_000, b'{"inputs": "' + b"a" * 70_000, b"[" * 70_000):
        check(http.post("/generate", content=body), 400)
    twice = b'{"inputs": "a", "parameters": {"n": 1, "n": 2}, "x": "' + b"a" * 70_000 + b'"}'
    assert "n: given twice" in check(http.post("/generate", content=twice), 400)["message"]


def images(*items: Any) -> dict[str, Any]:
    return {"inputs": "<image>" * len(items), "multimodal_params": {"images": list(items)}}


@pytest.mark.parametrize(
    "item",
    [
        {"type": "base64", "data": "!!!"},
        {"type": "base64", "data": ""},
        {"type": "base64", "data": "aGVsbG8="},
        {"type": "base64", "data": PIXEL[:40]},
        {"type": "base64", "data": [1, 2]},
        {"type": "image_size", "data": [1, 2]},
        {"type": "url", "data": "ftp://example.com/a.png"},
        {"type": "url", "data": "no url"},
        {"type": "url", "data": "http://127.0.0.1:1/a.png"},
        {"type": "url", "data": "file:///etc/passwd"},
        {"type": "video", "data": "x"},
        {"type": "url"},
        {"data": "x"},
        "x",
    ],
)
def test_bad_pictures_name_their_index(http: httpx.Client, item: Any) -> None:
    error = check(http.post("/generate", json=images(IMAGE, item)), 400)
    assert "images[1]" in error["message"]
    assert "/etc" not in error["message"]
    assert "127.0.0.1" not in error["message"]


@pytest.mark.parametrize(
    ("inputs", "num_images", "numbers"),
    [("<image>", 0, "10"), ("a", 1, "01"), ("<image> <img></img>", 1, "21")],
)
def test_placeholders_and_pictures_differ(
    http: httpx.Client, inputs: str, num_images: int, numbers: str
) -> None:
    body = {**images(*[IMAGE] * num_images), "inputs": inputs}
    error = check(http.post("/generate", json=body), 400)
    assert error["param"] == "inputs"
    message = error["message"]
    assert all(number in message for number in numbers)


def test_too_many_pictures(http: httpx.Client) -> None:
    message = check(http.post("/generate", json=images(*[IMAGE] * 4)), 400, "images")["message"]
    assert "4" in message
    assert "3" in message


def test_too_many_tiles(http: httpx.Client) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4000, 40)).save(file, "PNG")
    item = {"type": "base64", "data": base64.b64encode(file.getvalue()).decode()}
    body = {**images(item), "parameters": {"image_max_patch_num": 256}}
    message = check(http.post("/generate", json=body), 400, "images")["message"]
    assert "expected at most 100" in message


def test_a_prompt_that_is_too_long_says_both_numbers(http: httpx.Client) -> None:
    error = check(http.post("/generate", json={"inputs": [300] * 500}), 400)
    assert error["code"] == "context_length_exceeded"
    assert error["message"].count("500") == 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": 5}, "text"),
        ({"text": "a", "parameters": {"top_k": 0.5}}, "top_k"),
        ({"text": "<image>"}, None),
        ({"text": "a", "multimodal_params": {"images": [IMAGE] * 4}}, "images"),
    ],
)
def test_tokens(http: httpx.Client, body: Any, param: str | None) -> None:
    check(http.post("/tokens", json=body), 400, param)


@pytest.mark.parametrize("size", [[1], [1, 2, 3], "1x2", [10**400, 5], [0, 5], [-1, 5], [1.5, 2]])
def test_sizes_for_tokens(http: httpx.Client, size: Any) -> None:
    body = {
        "text": "<image>",
        "multimodal_params": {"images": [{"type": "image_size", "data": size}]},
    }
    assert "images[0]" in check(http.post("/tokens", json=body), 400)["message"]


Cases = list[tuple[str, list[Any], int]]
OPENAI: Cases = [
    ("model", ["other"], 404),
    ("max_tokens", [0, "a"], 400),
    ("temperature", [-1, "a"], 400),
    ("top_p", [0, 1.5], 400),
    ("n", [0, 9], 400),
    ("seed", ["a"], 400),
    ("stop", [1, [1], "", [""]], 400),
    ("stream", ["a"], 400),
    ("stream_options", [{"include_usage": True}, 5], 400),
    ("presence_penalty", [3], 400),
    ("frequency_penalty", [-3], 400),
    ("logit_bias", [{"1": 200}, {"a": 1}, {str(10**9): 1}], 400),
    ("response_format", [{"type": "xml"}, {"type": "json_schema"}, 5], 400),
    ("priority", ["a"], 400),
    ("timeout_s", [0], 400),
    ("glitter", [1], 400),
]
CHAT: Cases = [
    ("messages", [[], 5, "a", [{"role": "user"}]], 400),
    ("max_completion_tokens", [0], 400),
    ("logprobs", [5], 400),
    ("top_logprobs", [21, -1, 2], 400),
    ("tools", [[]], 400),
    ("tool_choice", ["required", {"type": "function", "function": {"name": "f"}}], 400),
    ("functions", [[]], 400),
    ("audio", [{}], 400),
]
COMPLETION: Cases = [
    ("prompt", [5, [], ["a", 1], [-1], [10**9], ""], 400),
    ("best_of", [2, 9], 400),
    ("echo", [True, 1], 400),
    ("suffix", ["a"], 400),
    ("logprobs", [True, -1, 21], 400),
]


def cases(table: Cases) -> list[tuple[str, Any, int]]:
    return [(name, value, status) for name, values, status in table for value in values]


@pytest.mark.parametrize(("name", "value", "status"), cases(OPENAI + CHAT))
def test_chat_fields(http: httpx.Client, name: str, value: Any, status: int) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], name: value}
    check(http.post("/v1/chat/completions", json=body), status, name)


@pytest.mark.parametrize(("name", "value", "status"), cases(OPENAI + COMPLETION))
def test_completion_fields(http: httpx.Client, name: str, value: Any, status: int) -> None:
    body = {"prompt": "a", name: value}
    check(http.post("/v1/completions", json=body), status, name)


def test_a_stream_of_several_prompts(http: httpx.Client) -> None:
    body = {"prompt": ["a", "b"], "stream": True}
    check(http.post("/v1/completions", json=body), 400, "prompt")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "robot", "content": "a"},
        {"role": "user"},
        {"role": "user", "content": 5},
        {"role": "user", "content": [{"type": "audio"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
        {"role": "system", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": "a", "tool_calls": []},
    ],
)
def test_messages(http: httpx.Client, message: Any) -> None:
    error = check(http.post("/v1/chat/completions", json={"messages": [message]}), 400)
    assert "messages[0]" in error["message"]


def test_a_bad_picture_in_a_chat(http: httpx.Client) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    for stream in (False, True):
        error = check(http.post("/v1/chat/completions", json={**body, "stream": stream}), 400)
        assert "images[0]" in error["message"]


def test_routes_and_methods(http: httpx.Client) -> None:
    assert check(http.get("/nowhere"), 404)["type"] == "not_found_error"
    check(http.post("/v1/nowhere", json={}), 404)
    for path in ("/generate", "/generate_stream", "/v1/chat/completions"):
        answer = http.get(path)
        check(answer, 405)
        assert "POST" in answer.headers["allow"]
    check(http.post("/metrics"), 405)
    check(http.delete("/health"), 405)


def test_a_large_body_is_refused_before_it_is_read(http: httpx.Client) -> None:
    address = (http.base_url.host, http.base_url.port)
    with socket.create_connection(address, timeout=10) as sock:
        sock.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 300001\r\n\r\n")
        answer = b""
        while b"300000" not in answer and (data := sock.recv(4096)):
            answer += data
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"300000" in answer


def test_a_large_chunked_body_is_refused(http: httpx.Client) -> None:
    answer = http.post("/generate", content=iter([b"x" * 100_000] * 4))
    check(answer, 413)


def test_admin_routes_without_an_admin_key(http: httpx.Client) -> None:
    for path in ("/flush_cache", "/drain"):
        check(http.post(path), 404)
