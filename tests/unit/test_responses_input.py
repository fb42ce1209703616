"""What chat completion a response's body becomes."""

from typing import Any

import msgspec
import pytest

from lightvl.api.openai_rules import renamed
from lightvl.api.openai_schema import ChatBody
from lightvl.api.responses_input import NAMES, chat_body, check_responses
from lightvl.api.responses_schema import ResponsesBody
from lightvl.errors import RequestError


def chat(**fields: Any) -> Any:
    body = msgspec.convert({"input": "a", **fields}, ResponsesBody)
    check_responses(body)
    return {k: v for k, v in msgspec.to_builtins(chat_body(body)).items() if v is not None}


def messages(*items: Any, **fields: Any) -> list[Any]:
    found = chat(input=list(items), **fields)["messages"]
    return [{k: v for k, v in message.items() if v is not None} for message in found]


def call(number: int) -> dict[str, str]:
    return {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": "{}"}


def result(number: int, output: Any = "1") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"c{number}", "output": output}


def called(*numbers: int) -> list[Any]:
    function = {"name": "f", "arguments": "{}"}
    return [{"function": function, "id": f"c{i}", "type": "function"} for i in numbers]


def test_calls_join_the_message_that_they_follow() -> None:
    user = {"role": "user", "content": "q"}
    said = {"type": "message", "role": "assistant", "content": "Let me see."}
    assert messages(user, said, call(1), call(2), result(1), result(2), call(3), result(3)) == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": called(1, 2)},
        {"role": "tool", "content": "1", "tool_call_id": "c1"},
        {"role": "tool", "content": "1", "tool_call_id": "c2"},
        {"role": "assistant", "tool_calls": called(3)},
        {"role": "tool", "content": "1", "tool_call_id": "c3"},
    ]
    assert messages(user, call(1))[-1] == {"role": "assistant", "tool_calls": called(1)}


def test_contents_of_every_kind() -> None:
    parts = [
        {"type": "output_text", "text": "a", "annotations": []},
        {"type": "refusal", "refusal": "no"},
    ]
    image = {"type": "input_image", "image_url": "data:,", "detail": "original"}
    found = messages(
        {"role": "developer", "content": "d"},
        {"role": "assistant", "content": parts},
        {"role": "user", "content": [{"type": "input_text", "text": "b"}, image]},
        result(1, [{"type": "input_text", "text": "c"}]),
        instructions="i",
    )
    assert [message["role"] for message in found] == [
        "system", "developer", "assistant", "user", "tool",
    ]  # fmt: skip
    assert found[0]["content"] == "i"
    assert [part["text"] for part in found[2]["content"]] == ["a", "no"]
    assert found[3]["content"] == [
        {"type": "text", "text": "b"},
        {"type": "image_url", "image_url": {"url": "data:,", "detail": "original"}},
    ]
    assert found[4]["content"] == [{"type": "text", "text": "c"}]


def test_the_other_fields() -> None:
    schema = {"type": "object"}
    found = chat(
        max_output_tokens=5, temperature=0.5, top_p=0.5, top_k=3, seed=1, stop="x", priority=2,
        timeout_s=1.5, stream=True, parallel_tool_calls=False, top_logprobs=2,
        text={"format": {"type": "json_schema", "name": "n", "schema": schema}},
        tools=[{"type": "function", "name": "f", "parameters": schema, "strict": True}],
        tool_choice={"type": "function", "name": "f"},
    )  # fmt: skip
    del found["messages"]
    assert found.pop("response_format")["json_schema"]["schema"] == schema
    assert found.pop("tools")[0]["function"]["parameters"] == schema
    assert found.pop("tool_choice") == {"type": "function", "function": {"name": "f"}}
    assert found == {
        "max_completion_tokens": 5, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "seed": 1,
        "stop": "x", "priority": 2, "timeout_s": 1.5, "stream": True,
        "parallel_tool_calls": False, "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    assert chat(tools=[])["messages"] == chat()["messages"]
    assert msgspec.convert(chat(), ChatBody)


def test_errors_get_this_routes_names() -> None:
    told = renamed(RequestError("messages: too long", param="messages", code="c"), NAMES)
    assert (told.message, told.param, told.code) == ("input: too long", "input", "c")
    told = renamed(RequestError("response_format.type: no", param="response_format"), NAMES)
    assert (told.message, told.param) == ("text.format.type: no", "text.format")
    other = RequestError("tools: none", param="tools")
    assert renamed(other, NAMES) is other


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"include": ["everything"]}, "include"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
    ],
)
def test_what_is_refused(fields: Any, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        chat(**fields)
    assert refused.value.param == param
