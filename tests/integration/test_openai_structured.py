"""Structured answers and function calls, as the official client's documentation shows them.

They run with a model that says the least that its schema allows: the bundled one knows no end of a
free text.
"""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.integration.chat_servers import CHAT_TOOLS, QUESTION, TOOLS, chat_server, write_terse

MODEL = "demo"


@pytest.fixture(scope="module")
def terse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    with (
        chat_server(write_terse(tmp_path_factory.mktemp("model") / "terse")) as server,
        OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as opened,
    ):
        yield opened


# --- structured answers ------------------------------------------------------------------------


class CalendarEvent(BaseModel):
    name: str
    date: str
    participants: list[str]


class Step(BaseModel):
    explanation: str
    output: str


class MathReasoning(BaseModel):
    steps: list[Step]
    final_answer: str


EXTRACT: Any = [
    {"role": "system", "content": "Extract the event information."},
    {"role": "user", "content": "Alice and Bob are going to a science fair on Friday."},
]


def test_structured_outputs_of_chat_completions(terse: OpenAI) -> None:
    completion = terse.chat.completions.parse(
        model=MODEL, messages=EXTRACT, response_format=CalendarEvent
    )
    event = completion.choices[0].message.parsed
    assert isinstance(event, CalendarEvent)
    tutored = terse.chat.completions.parse(
        model=MODEL,
        messages=[
            {
                "role": "system",
                "content": "You are a helpful math tutor. Guide the user through the solution.",
            },
            {"role": "user", "content": "how can I solve 8x + 7 = -23"},
        ],
        response_format=MathReasoning,
    )
    assert isinstance(tutored.choices[0].message.parsed, MathReasoning)
    with terse.chat.completions.stream(
        model=MODEL, messages=EXTRACT, response_format=CalendarEvent
    ) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == event


def test_structured_outputs_of_responses(terse: OpenAI) -> None:
    response = terse.responses.parse(model=MODEL, input=EXTRACT, text_format=CalendarEvent)
    assert isinstance(response.output_parsed, CalendarEvent)
    with terse.responses.stream(model=MODEL, input=EXTRACT, text_format=CalendarEvent) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_parsed == response.output_parsed


def test_a_json_schema_without_helpers(terse: OpenAI) -> None:
    schema: Any = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "date": {"type": "string"},
            "participants": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "date", "participants"],
        "additionalProperties": False,
    }
    response = terse.responses.create(
        model=MODEL,
        input=EXTRACT,
        text={
            "format": {
                "type": "json_schema",
                "name": "calendar_event",
                "schema": schema,
                "strict": True,
            }
        },
    )
    completion = terse.chat.completions.create(
        model=MODEL,
        messages=EXTRACT,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "calendar_event", "schema": schema, "strict": True},
        },
    )
    assert json.loads(response.output_text).keys() == schema["properties"].keys()
    assert completion.choices[0].message.content == response.output_text
    any_object = terse.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "You are a helpful assistant designed to output JSON."},
            {"role": "user", "content": "Who won the world series in 2020?"},
        ],
        response_format={"type": "json_object"},
    )
    assert isinstance(json.loads(any_object.choices[0].message.content or ""), dict)


# --- tools -------------------------------------------------------------------------------------


class GetWeather(BaseModel):
    city: str
    country: str


def test_function_calling_with_chat_completions(terse: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    completion = terse.chat.completions.create(
        model=MODEL, messages=messages, tools=CHAT_TOOLS, tool_choice="required"
    )
    message = completion.choices[0].message
    assert message.tool_calls is not None
    tool_call = message.tool_calls[0]
    assert tool_call.type == "function"
    args = json.loads(tool_call.function.arguments)
    assert args.keys() == {"location"}
    for answered in (message, message.model_dump()):
        again = [
            *messages,
            answered,
            {"role": "tool", "tool_call_id": tool_call.id, "content": "14.3"},
        ]
        completion_2 = terse.chat.completions.create(model=MODEL, messages=again, tools=CHAT_TOOLS)
        assert completion_2.choices[0].finish_reason == "stop"


def test_the_pydantic_helper_for_tools(terse: OpenAI) -> None:
    completion = terse.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        tools=[openai.pydantic_function_tool(GetWeather, name="get_weather")],
        tool_choice="required",
    )
    calls = completion.choices[0].message.tool_calls
    assert calls is not None
    assert isinstance(calls[0].function.parsed_arguments, GetWeather)


def test_function_calling_with_responses(terse: OpenAI) -> None:
    input_list: Any = [{"role": "user", "content": QUESTION}]
    response = terse.responses.create(
        model=MODEL, tools=TOOLS, input=input_list, tool_choice="required"
    )
    input_list += response.output
    (item,) = response.output
    assert item.type == "function_call"
    assert json.loads(item.arguments).keys() == {"location"}
    input_list.append(
        {
            "type": "function_call_output",
            "call_id": item.call_id,
            "output": json.dumps({"temperature": 14.3}),
        }
    )
    final = terse.responses.create(
        model=MODEL,
        instructions="Respond only with what the tool says.",
        tools=TOOLS,
        input=input_list,
    )
    assert final.status == "completed"
    assert final.usage is not None
    assert response.usage is not None
    assert final.usage.input_tokens > response.usage.input_tokens


def test_streaming_function_calls(terse: OpenAI) -> None:
    final_tool_calls: dict[int, Any] = {}
    kinds = []
    for event in terse.responses.create(
        model=MODEL,
        input=[{"role": "user", "content": QUESTION}],
        tools=TOOLS,
        tool_choice={"type": "function", "name": "get_weather"},
        stream=True,
    ):
        kinds.append(event.type)
        if event.type == "response.output_item.added":
            final_tool_calls[event.output_index] = event.item
        elif event.type == "response.function_call_arguments.delta":
            final_tool_calls[event.output_index].arguments += event.delta
    assert json.loads(final_tool_calls[0].arguments).keys() == {"location"}
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_a_choice_among_allowed_tools(terse: OpenAI) -> None:
    clock: Any = {"type": "function", "name": "clock", "parameters": {}, "strict": True}
    allowed: Any = {"type": "allowed_tools", "mode": "required"}
    for name in ("clock", "get_weather"):
        choice: Any = {**allowed, "tools": [{"type": "function", "name": name}]}
        response = terse.responses.create(
            model=MODEL, input=QUESTION, tools=[*TOOLS, clock], tool_choice=choice
        )
        assert {item.name for item in response.output if item.type == "function_call"} == {name}
    nested: Any = {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "required",
            "tools": [{"type": "function", "function": {"name": "get_weather"}}],
        },
    }
    completion = terse.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        tools=[*CHAT_TOOLS, {"type": "function", "function": {"name": "clock"}}],
        tool_choice=nested,
    )
    calls: Any = completion.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["get_weather"]
