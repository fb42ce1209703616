"""Bodies are decoded strictly and errors name the field."""

import pytest

from lightvl.api.openai_rules import check_supported
from lightvl.api.openai_schema import ChatBody, CompletionBody, prompts_of
from lightvl.api.schema import GenerateBody, decode_body, unknown_keys
from lightvl.errors import RequestError


def refusal(body: bytes, kind: type = GenerateBody) -> RequestError:
    with pytest.raises(RequestError) as refused:
        decode_body(body, kind)
    assert refused.value.status == 400
    return refused.value


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b"", "body: expected JSON", "body"),
        (b"{", "body: expected JSON", "body"),
        (b'{"inputs": "a"} x', "body: expected JSON", "body"),
        (b"[]", "body: expected object, got array", "body"),
        (b"{}", "inputs: required", "inputs"),
        (b'{"inputs": 1}', "inputs: expected str | array, got int", "inputs"),
        (b'{"inputs": null}', "inputs: expected str | array, got null", "inputs"),
        (b'{"inputs": [1, "a"]}', "inputs[1]: expected int, got str", "inputs[1]"),
        (b'{"inputs": [1.5]}', "inputs[0]: expected int, got float", "inputs[0]"),
        (b'{"inputs": "\xff"}', "body: expected UTF-8", "body"),
        (b'{"inputs": "\\ud800"}', "body: expected JSON", "body"),
        (b'{"inputs": "a", "inputs": "b"}', "inputs: given twice in one object", "inputs"),
        (
            b'{"inputs": "a", "parameters": {"top_k": 1, "top_k": 2}}',
            "top_k: given twice in one object",
            "top_k",
        ),
        (b'{"inputs": "a", "x": ' + b"[" * 100_000, "body: nested too deeply", "body"),
        (
            b'{"inputs": "a", "parameters": {"top_k": "a"}}',
            "parameters.top_k: expected int, got str",
            "top_k",
        ),
        (b'{"inputs": "a", "parameters": {"temperature": NaN}}', "body: expected JSON", "body"),
        (
            b'{"inputs": "a", "parameters": {"temperature": 1e999}}',
            "parameters.temperature: number out of range",
            "temperature",
        ),
        (
            b'{"inputs": "a", "parameters": {"seed": ' + b"9" * 5000 + b"}}",
            "parameters.seed: integer value out of range",
            "seed",
        ),
    ],
)
def test_malformed_bodies(body: bytes, message: str, param: str) -> None:
    error = refusal(body)
    assert error.message == message
    assert error.param == param


def test_deep_nesting_inside_a_known_field() -> None:
    body = b'{"inputs": "a", "parameters": {"guided_json": ' + b'{"a":' * 5000 + b"1" + b"}" * 5002
    assert refusal(body).message == "body: nested too deeply"


def test_null_and_absent_fields_take_their_defaults() -> None:
    body = decode_body(b'{"inputs": "a", "parameters": {"top_k": null}}', GenerateBody)
    assert body.parameters is not None
    assert body.parameters.top_k is None
    assert decode_body(b'{"inputs": "a"}', GenerateBody).parameters is None


def test_unknown_native_keys_are_found_at_every_level() -> None:
    body = b'{"inputs": "a", "foo": {"a": [1]}, "parameters": {"top_k": 1, "bar": 2},'
    body += b'"multimodal_params": {"audios": []}}'
    decode_body(body, GenerateBody)
    assert unknown_keys(body, GenerateBody) == {"foo", "bar", "audios"}
    assert unknown_keys(b'{"inputs": "a", "parameters": null}', GenerateBody) == set()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"messages": []}', "messages: expected array of length >= 1"),
        (b'{"messages": [{"role": "x", "content": "a"}]}', "messages[0].role: invalid enum value"),
        (
            b'{"messages": [{"role": "user", "content": [{"type": "video"}]}]}',
            "messages[0].content[0].type: invalid value",
        ),
        (b'{"messages": [{"role": "user", "content": "a"}], "tools": []}', "tools: expected array"),
        (b'{"messages": [{"role": "user", "content": "a", "x": 1}]}', "messages[0].x: unknown or"),
    ],
)
def test_chat_bodies(body: bytes, message: str) -> None:
    assert refusal(body, ChatBody).message.startswith(message)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (b'"stream_options": {"include_usage": true}', "stream_options"),
        (b'"top_logprobs": 2', "top_logprobs"),
    ],
)
def test_what_chat_does_not_do_yet(fields: bytes, param: str) -> None:
    text = b'{"messages": [{"role": "user", "content": "a"}], ' + fields + b"}"
    with pytest.raises(RequestError) as refused:
        check_supported(decode_body(text, ChatBody))
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (b'"a"', ["a"]),
        (b'["a", "b"]', ["a", "b"]),
        (b"[1, 2]", [[1, 2]]),
        (b"[[1], [2, 3]]", [[1], [2, 3]]),
        (b'["a", [2]]', ["a", [2]]),
    ],
)
def test_prompts_of_a_completion(prompt: bytes, expected: list[object]) -> None:
    body = decode_body(b'{"prompt": ' + prompt + b"}", CompletionBody)
    assert prompts_of(body) == expected


@pytest.mark.parametrize("prompt", [b"[]", b'["a", 1]', b"[1, [2]]"])
def test_prompts_that_mix_kinds(prompt: bytes) -> None:
    body = decode_body(b'{"prompt": ' + prompt + b"}", CompletionBody)
    with pytest.raises(RequestError) as refused:
        prompts_of(body)
    assert refused.value.param == "prompt"
