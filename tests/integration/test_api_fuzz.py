"""Random bodies: whatever comes, the answer is 200 or names what is wrong, and never 500."""

import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightvl.testing.server import ServerProcess

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
NATIVE: dict[str, Any] = {
    "inputs": "hello <image>",
    "parameters": {
        "do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1,
        "max_new_tokens": 3, "min_new_tokens": 1, "stop_sequences": ["x", [5]], "n": 2,
        "seed": 1, "logit_bias": {"5": 1.0}, "allowed_token_ids": [1, 2], "return_details": True,
        "image_max_patch_num": 2, "repetition_penalty": 1.1, "presence_penalty": 0.5,
        "timeout_s": 5, "skip_special_tokens": False, "print_eos_token": True,
    },
    "multimodal_params": {"images": [{"type": "base64", "data": PNG}]},
}  # fmt: skip
CHAT: dict[str, Any] = {
    "model": None,
    "messages": [
        {"role": "system", "content": "be"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<image>"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PNG}},
            ],
        },
    ],
    "max_tokens": 3, "stop": ["a"], "n": 2, "logprobs": True, "top_logprobs": 2,
    "logit_bias": {"3": 1}, "stream": True, "stream_options": {"include_usage": True},
}  # fmt: skip
COMPLETION: dict[str, Any] = {
    "prompt": [[1, 2], "text"], "max_tokens": 2, "logprobs": 1, "best_of": 1, "n": 1, "echo": False,
    "seed": -5, "stop": "b", "priority": 1,
}  # fmt: skip
RESPONSE: dict[str, Any] = {
    "instructions": "be",
    "input": [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "<image>"},
                {"type": "input_image", "image_url": "data:image/png;base64," + PNG},
            ],
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c", "output": "b"},
    ],
    "max_output_tokens": 3, "top_logprobs": 2, "stream": True, "metadata": {"a": "b"},
    "text": {"format": {"type": "text"}}, "tool_choice": "none",
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
}  # fmt: skip
TOKENS: dict[str, Any] = {
    "text": "a <image>",
    "multimodal_params": {"images": [{"type": "image_size", "data": [3, 4]}]},
}
ROUTES = {
    "/generate": NATIVE,
    "/generate_stream": {**NATIVE, "parameters": {**NATIVE["parameters"], "n": 1}},
    "/": NATIVE,
    "/tokens": TOKENS,
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/responses": RESPONSE,
}
ODD: list[Any] = [
    None, True, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, 1e-320, "", "a", "\x00",
    "\ud83d\ude42", "<image>", "<IMG_CONTEXT><img></img>", "😀" * 50, [], [[]], [None], [1], {},
    {"": 1}, {"a": {"b": []}}, ["a", 1], "data:,", "http://[::1", "file:///", "https://a@b:99999/",
    [10**9], "a" * 500,
]  # fmt: skip


def mutate(value: Any, rng: random.Random) -> Any:
    """Returns a copy with one part somewhere in it replaced, removed or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if rng.random() < 0.1:
            return {**value, rng.choice(["", "x", "inputs", "\n"]): rng.choice(ODD)}
        return {**value, key: mutate(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value * 2
        return [*value[:at], mutate(value[at], rng), *value[at + 1 :]]
    return rng.choice(ODD)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with ServerProcess("--request_timeout_s", "5") as server:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            yield client
        assert "failed inside" not in server.log


@pytest.mark.parametrize("path", ROUTES)
def test_mutated_bodies(http: httpx.Client, path: str) -> None:
    rng = random.Random(path)
    statuses = set()
    for _ in range(250):
        body = ROUTES[path]
        for _ in range(rng.randint(0, 4)):
            body = mutate(body, rng)
        answer = http.post(path, content=json.dumps(body))
        statuses.add(answer.status_code)
        assert answer.status_code in (200, 400, 404), (body, answer.text)
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert error["message"]
            assert "Traceback" not in error["message"]
    assert statuses >= {200, 400}


@pytest.mark.parametrize("path", ROUTES)
def test_mangled_bytes(http: httpx.Client, path: str) -> None:
    rng = random.Random(path)
    whole = json.dumps(ROUTES[path]).encode()
    for _ in range(150):
        mangled = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            mangled[rng.randrange(len(mangled))] = rng.randrange(256)
        answer = http.post(path, content=bytes(mangled[: rng.randint(1, len(mangled))]))
        assert answer.status_code in (200, 400, 404), (mangled, answer.text)


def keys_of(value: Any) -> set[str]:
    """Every key in a body, at any depth."""
    if isinstance(value, dict):
        return set(value).union(*(keys_of(inner) for inner in value.values()))
    return set().union(*(keys_of(inner) for inner in value)) if isinstance(value, list) else set()


KEYS = sorted(set().union(*(keys_of(body) for body in ROUTES.values())))
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["user", "<image>", "url", "base64", PNG, "data:image/png;base64," + PNG])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("path", ROUTES)
def test_any_json(http: httpx.Client, path: str) -> None:
    @settings(
        max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.dictionaries(st.sampled_from(sorted(ROUTES[path])), VALUES, max_size=4), VALUES)
    def test(changes: dict[str, Any], anything: Any) -> None:
        for body in (ROUTES[path] | changes, anything):
            answer = http.post(path, content=json.dumps(body))
            assert answer.status_code in (200, 400, 404), (body, answer.text)

    test()
