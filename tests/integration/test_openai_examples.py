"""The official client's documented examples, as documented but for the address and the model.

Chat, vision, streams, and calls that may be made. Structured answers and calls that must be made
are in `test_openai_structured.py`.
"""

import asyncio
import base64
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.integration.chat_servers import CHAT_TOOLS, QUESTION, TOOLS, chat_server, demo_with_tools

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = "demo"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    with (
        chat_server(demo_with_tools(tmp_path_factory.mktemp("model") / "demo")) as server,
        OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as opened,
    ):
        yield opened


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


# --- tools -------------------------------------------------------------------------------------


def test_tools_that_may_be_called(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], tools=CHAT_TOOLS
    )
    response = client.responses.create(
        model=MODEL, input=[{"role": "user", "content": QUESTION}], tools=TOOLS
    )
    assert completion.choices[0].message.tool_calls is None
    assert response.output_text == completion.choices[0].message.content
