"""Tools through the official client, with the bundled model under a template that takes tools."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from lightvl.testing.server import ServerProcess
from tests.integration.chat_servers import chat_server, demo_with_tools

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "paint",
            "description": "Paints a shape",
            "parameters": {
                "type": "object",
                "properties": {
                    "shape": {"enum": ["circle", "square"]},
                    "size": {"type": "integer", "minimum": 1, "maximum": 99},
                },
                "required": ["shape", "size"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "clear"}},
]
MESSAGES: Any = [{"role": "user", "content": "Paint something."}]
PAINT: Any = {"type": "function", "function": {"name": "paint"}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    directory = demo_with_tools(tmp_path_factory.mktemp("tools") / "demo")
    with (
        chat_server(directory) as process,
        openai.OpenAI(base_url=f"{process.url}/v1", api_key="-", max_retries=0) as opened,
    ):
        yield opened


def test_a_tool_that_is_named(client: openai.OpenAI) -> None:
    for seed in range(6):
        answer = client.chat.completions.create(
            model="demo", messages=MESSAGES, tools=TOOLS, tool_choice=PAINT, seed=seed,
            temperature=1.5, max_tokens=300,
        )  # fmt: skip
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert choice.message.tool_calls is not None
        (call,) = choice.message.tool_calls
        assert call.type == "function"
        assert call.function.name == "paint"
        arguments = json.loads(call.function.arguments)
        assert arguments.keys() == {"shape", "size"}
        assert arguments["shape"] in ("circle", "square")


def test_a_stream_carries_the_same_calls(client: openai.OpenAI) -> None:
    common: Any = {
        "model": "demo", "messages": MESSAGES, "tools": TOOLS, "tool_choice": "required",
        "seed": 4, "temperature": 1.5, "max_tokens": 600, "n": 2,
    }  # fmt: skip
    whole = client.chat.completions.create(**common)
    calls: list[list[tuple[str, str]]] = [[], []]
    reasons: list[str | None] = [None, None]
    for chunk in client.chat.completions.create(**common, stream=True):
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or []:
                assert call.index == len(calls[choice.index])
                assert call.function is not None
                calls[choice.index].append(
                    (call.function.name or "", call.function.arguments or "")
                )
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    for i, choice in enumerate(whole.choices):
        expected = [
            (call.function.name, call.function.arguments)
            for call in choice.message.tool_calls or []
            if call.type == "function"
        ]
        assert calls[i] == expected
        assert reasons[i] == choice.finish_reason
        assert choice.finish_reason in ("tool_calls", "length")


def test_results_are_sent_back(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(
        model="demo", messages=MESSAGES, tools=TOOLS, tool_choice=PAINT, seed=1, max_tokens=300
    )
    message: Any = first.choices[0].message
    assert message.tool_calls is not None
    result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "done"}
    second = client.chat.completions.create(
        model="demo", messages=[*MESSAGES, message, result], tools=TOOLS, max_tokens=8
    )
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_tools_that_may_be_called_need_not_be(client: openai.OpenAI) -> None:
    common: Any = {"model": "demo", "messages": MESSAGES, "max_tokens": 20, "seed": 2}
    whole = client.chat.completions.create(**common, tools=TOOLS)
    assert whole.choices[0].message.content
    stream = client.chat.completions.create(**common, tools=TOOLS, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content


def test_a_template_without_tools_refuses_them() -> None:
    with ServerProcess() as process:
        client = openai.OpenAI(base_url=f"{process.url}/v1", api_key="-", max_retries=0)
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="demo", messages=MESSAGES, tools=TOOLS)
    assert refused.value.param == "tools"
