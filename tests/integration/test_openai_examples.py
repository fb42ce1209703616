"""The official client's documented examples, as documented but for the address and the model.

Chat, vision, streaming and calls that may be made run with the bundled model. Structured answers
and calls that must be made run with a model that says the least that its schema allows: the bundled
one knows no end of a free text.
"""

import asyncio
import base64
import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.integration.chat_servers import chat_server, demo_with_tools, write_terse

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = "demo"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    with chat_server(demo_with_tools(tmp_path_factory.mktemp("model") / "demo")) as server:
        yield OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def terse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    with chat_server(write_terse(tmp_path_factory.mktemp("model") / "terse")) as server:
        yield OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def image_url() -> Iterator[str]:
    """Where a picture can be fetched."""
    handler = functools.partial(_Quiet, directory=str(EXAMPLES))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/face.png"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def base64_image() -> str:
    return base64.b64encode((EXAMPLES / "face.png").read_bytes()).decode("utf-8")


# --- text --------------------------------------------------------------------------------------


def test_responses(client: OpenAI) -> None:
    response = client.responses.create(
        model=MODEL,
        instructions="You are a coding assistant that talks like a pirate.",
        input="How do I check if a Python object is an instance of a class?",
    )
    assert response.output_text.endswith(".")
    assert response.status == "completed"


def test_chat_completions(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "Talk like a pirate."},
            {
                "role": "user",
                "content": "How do I check if a Python object is an instance of a class?",
            },
        ],
    )
    assert completion.choices[0].message.content
    assert completion.choices[0].finish_reason == "stop"


def test_a_conversation(client: OpenAI) -> None:
    history: Any = [{"role": "user", "content": "tell me a joke"}]
    response = client.responses.create(model=MODEL, input=history, store=False)
    history += [{"role": el.role, "content": el.content} for el in response.output]  # type: ignore[union-attr]
    history.append({"role": "user", "content": "tell me another"})
    second_response = client.responses.create(model=MODEL, input=history, store=False)
    assert second_response.output_text
    assert second_response.usage is not None
    assert response.usage is not None
    assert second_response.usage.input_tokens > response.usage.input_tokens


def test_async_usage(client: OpenAI) -> None:
    async def main() -> None:
        async with AsyncOpenAI(base_url=client.base_url, api_key="none") as aclient:
            response = await aclient.responses.create(
                model=MODEL, input="Explain disestablishmentarianism to a smart five year old."
            )
            assert response.output_text
            stream = await aclient.responses.create(
                model=MODEL,
                input="Write a one-sentence bedtime story about a unicorn.",
                stream=True,
            )
            types = [event.type async for event in stream]
            assert types[0] == "response.created"
            assert types[-1] == "response.completed"

    asyncio.run(main())


# --- vision ------------------------------------------------------------------------------------


def test_vision_with_an_image_url(client: OpenAI, image_url: str) -> None:
    prompt = "What is in this image?"
    response = client.responses.create(
        model=MODEL,
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": prompt},
                    {"type": "input_image", "image_url": f"{image_url}", "detail": "auto"},
                ],
            }
        ],
    )
    assert "smiling face" in response.output_text
    completion = client.chat.completions.create(
        model=MODEL,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": prompt},
                    {"type": "image_url", "image_url": {"url": image_url}},
                ],
            }
        ],
        max_tokens=300,
    )
    assert completion.choices[0].message.content == response.output_text


def test_vision_with_base64_images(client: OpenAI) -> None:
    b64_image = base64_image()
    response = client.responses.create(
        model=MODEL,
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is in this image?"},
                    {
                        "type": "input_image",
                        "image_url": f"data:image/png;base64,{b64_image}",
                        "detail": "high",
                    },
                ],
            }
        ],
    )
    assert "smiling face" in response.output_text
    several = client.chat.completions.create(
        model=MODEL,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What are in these images?"},
                    {
                        "type": "image_url",
                        "image_url": {"url": f"data:image/png;base64,{b64_image}"},
                    },
                    {
                        "type": "image_url",
                        "image_url": {
                            "url": f"data:image/png;base64,{b64_image}",
                            "detail": "low",
                        },
                    },
                ],
            }
        ],
        max_tokens=300,
    )
    assert several.usage is not None
    details: Any = several.usage.prompt_tokens_details
    assert details.image_tokens == 128


# --- streams -----------------------------------------------------------------------------------


def test_streaming_responses(client: OpenAI) -> None:
    stream = client.responses.create(
        model=MODEL, input="Write a one-sentence bedtime story about a unicorn.", stream=True
    )
    text = ""
    for event in stream:
        if event.type == "response.output_text.delta":
            text += event.delta
        elif event.type == "response.completed":
            assert event.response.output_text == text != ""
            return
    pytest.fail("the stream did not complete")


def test_streaming_chat_completions(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Say this is a test"}],
        stream=True,
    )
    said = ""
    for chunk in stream:
        if chunk.choices[0].delta.content is not None:
            said += chunk.choices[0].delta.content
    assert said


def test_the_streams_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL,
        messages=[{"role": "user", "content": "Say this is a test"}],
        stream_options={"include_usage": True},
    ) as stream:
        said = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert final.choices[0].message.content == said
    assert final.usage is not None


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

WEATHER: Any = {
    "name": "get_weather",
    "description": "Get current temperature for a given location.",
    "parameters": {
        "type": "object",
        "properties": {
            "location": {"type": "string", "description": "City and country e.g. Bogotá, Colombia"}
        },
        "required": ["location"],
        "additionalProperties": False,
    },
    "strict": True,
}
CHAT_TOOLS: Any = [{"type": "function", "function": WEATHER}]
TOOLS: Any = [{"type": "function", **WEATHER}]
QUESTION = "What is the weather like in Paris today?"


class GetWeather(BaseModel):
    city: str
    country: str


def test_tools_that_may_be_called(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], tools=CHAT_TOOLS
    )
    response = client.responses.create(
        model=MODEL, input=[{"role": "user", "content": QUESTION}], tools=TOOLS
    )
    assert completion.choices[0].message.tool_calls is None
    assert response.output_text == completion.choices[0].message.content


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
