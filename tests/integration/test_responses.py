"""`/v1/responses` against the stub engine, which echoes the prompt; types are the client's own."""

import base64
import http.server
import io
import json
import random
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from PIL import Image
from pydantic import TypeAdapter

from lightvl.testing.server import ServerProcess

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
FRAME = ["response.created", "response.in_progress"]
OPENED = ["response.output_item.added", "response.content_part.added"]
CLOSED = [
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
WORDS = "hello world, grüße 🙂 nice to meet you"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    flags = ["--model_name", "echo", "--media_workers", "1", "--allow_private_media"]
    with ServerProcess(*flags) as process:
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as opened:
        yield opened


def png(seed: int, size: tuple[int, int] = (60, 40), *, noise: bool = False) -> bytes:
    file = io.BytesIO()
    if noise:
        pixels = random.Random(seed).randbytes(3 * size[0] * size[1])
        Image.frombytes("RGB", size, pixels).save(file, "PNG")
    else:
        Image.new("RGB", size, (seed, 5, 77)).save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def create(server: ServerProcess, **fields: Any) -> Any:
    answer = httpx.post(server.url + "/v1/responses", json=fields, timeout=30)
    assert answer.status_code == 200, answer.text
    Response.model_validate(answer.json())
    return answer.json()


def stream(server: ServerProcess, **fields: Any) -> list[Any]:
    """The events of a stream, each checked by the client's types."""
    answer = httpx.post(server.url + "/v1/responses", json={**fields, "stream": True}, timeout=30)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *blocks, end = answer.text.split("\n\n")
    assert end == ""
    events = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        EVENT.validate_python(event)
        events.append(event)
    return events


def unnamed(response: Any) -> Any:
    """A response without what differs each time."""
    kept = {**response, "id": "", "created_at": 0, "completed_at": 0}
    kept["output"] = [{**item, "id": ""} for item in response["output"]]
    kept["usage"] = {k: v for k, v in response["usage"].items() if k != "lightvl"}
    return kept


def text_of(response: Any) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


def test_a_response_is_a_chat_completion(server: ServerProcess, client: openai.OpenAI) -> None:
    url = data_url(png(1))
    chat = client.chat.completions.create(
        model="echo",
        max_tokens=200,
        extra_body={"ignore_eos": True},
        messages=[
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "before "},
                    {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
                    {"type": "text", "text": "after"},
                ],
            },
            {"role": "assistant", "content": "Well."},
            {"role": "user", "content": WORDS},
        ],
    )
    response = create(
        server,
        model="echo",
        max_output_tokens=200,
        ignore_eos=True,
        instructions="Be brief.",
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "before "},
                    {"type": "input_image", "image_url": url, "detail": "low"},
                    {"type": "input_text", "text": "after"},
                ],
            },
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Well.", "annotations": []}],
            },
            {"type": "message", "role": "user", "content": WORDS},
        ],
    )
    assert WORDS in text_of(response)
    assert text_of(response) == chat.choices[0].message.content
    assert chat.usage is not None
    usage = response["usage"]
    assert usage["input_tokens"] == chat.usage.prompt_tokens
    assert usage["output_tokens"] == chat.usage.completion_tokens == 200
    assert usage["total_tokens"] == chat.usage.total_tokens
    assert usage["input_tokens_details"]["image_tokens"] > 0


def test_what_a_response_says_of_itself(client: openai.OpenAI) -> None:
    asked: Any = {"metadata": {"a": "b"}, "user": "me", "prompt_cache_key": "k", "store": True}
    response = client.responses.create(
        model="echo", input="a", max_output_tokens=3, temperature=0.5, top_p=0.25, **asked
    )
    assert response.id.startswith("resp_")
    assert response.object == "response"
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert (response.model, response.user, response.prompt_cache_key) == ("echo", "me", "k")
    assert response.metadata == {"a": "b"}
    assert (response.temperature, response.top_p) == (0.5, 0.25)
    assert (response.truncation, response.background) == ("disabled", False)
    assert (response.model_extra or {})["store"] is False
    (item,) = response.output
    assert item.type == "message"
    assert item.status == "incomplete"
    ended = client.responses.create(model="echo", input="a", extra_body={"stop": "user"})
    assert ended.status == "completed"
    assert ended.completed_at is not None
    assert ended.incomplete_details is None


def test_the_events_of_a_stream(server: ServerProcess) -> None:
    for most in (60, 1):
        asked: Any = {"input": WORDS, "max_output_tokens": most, "ignore_eos": True}
        whole = create(server, **asked)
        events = stream(server, **asked)
        kinds = [event["type"] for event in events]
        num_deltas = kinds.count("response.output_text.delta")
        deltas = ["response.output_text.delta"] * num_deltas
        assert kinds == [*FRAME, *OPENED, *deltas, *CLOSED, "response.incomplete"]
        assert most == 1 or num_deltas > most // 2
        assert "".join(event.get("delta", "") for event in events) == text_of(whole)
        assert events[-4]["text"] == text_of(whole)
        assert events[0]["response"]["status"] == events[1]["response"]["status"] == "in_progress"
        assert events[2]["item"]["content"] == []
        last = events[-1]["response"]
        assert last["usage"]["lightvl"]["timings_ms"]["total"] > 0
        assert last["output"] == [events[-2]["item"]]
        assert last["id"] == events[0]["response"]["id"]
        assert unnamed(last) == unnamed(whole)


def test_the_official_client_follows_a_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="echo", input=WORDS, max_output_tokens=30) as events:
        said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        final = events.get_final_response()
    assert final.output_text == said != ""


def test_an_empty_answer_has_an_empty_message(server: ServerProcess) -> None:
    asked: Any = {"input": "a", "stop": "<|im_start|>", "max_output_tokens": 9}
    whole = create(server, **asked)
    assert text_of(whole) == ""
    assert whole["status"] == "completed"
    kinds = [event["type"] for event in stream(server, **asked)]
    assert kinds == [*FRAME, *OPENED, *CLOSED, "response.completed"]


def test_logprobs(server: ServerProcess) -> None:
    asked: Any = {"input": "é 🙂", "max_output_tokens": 12, "ignore_eos": True}
    asked |= {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    (item,) = create(server, **asked)["output"]
    (part,) = item["content"]
    assert len(part["logprobs"]) == 12
    assert all(len(token["top_logprobs"]) == 2 for token in part["logprobs"])
    told = [token for e in stream(server, **asked) if "delta" in e for token in e["logprobs"]]
    assert told == part["logprobs"][: len(told)]
    plain = create(server, input="a", max_output_tokens=2)
    assert plain["output"][0]["content"][0]["logprobs"] == []


def image_tokens(server: ServerProcess, *parts: Any) -> int:
    content = [{"type": "input_text", "text": "What?"}, *parts]
    response = create(server, input=[{"role": "user", "content": content}], max_output_tokens=1)
    return int(response["usage"]["input_tokens_details"]["image_tokens"])


def test_pictures_of_every_kind(server: ServerProcess) -> None:
    data = png(3, (300, 200), noise=True)
    assert len(data) > 100_000  # its body goes to a media worker
    large = {"type": "input_image", "image_url": data_url(data)}
    small = {"type": "input_image", "image_url": data_url(png(4))}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as pictures:
        threading.Thread(target=pictures.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{pictures.server_port}/a.png"
        linked = {"type": "input_image", "image_url": address}
        tokens = image_tokens(server, large)
        assert image_tokens(server, linked) == tokens > 0
        assert image_tokens(server, large, small, linked) == 2 * tokens + image_tokens(
            server, small
        )
        pictures.shutdown()
    low = image_tokens(server, {**large, "detail": "low"})
    assert low < tokens
    assert tokens % low == 0


BAD: list[tuple[Any, str]] = [
    ([{"role": "user", "content": [{"type": "input_image"}]}], "input[0].content[0].image_url"),
    (
        [{"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}],
        "input[0].content[0].file_id",
    ),
    (
        [
            {"role": "user", "content": "a"},
            {"role": "system", "content": [{"type": "input_image", "image_url": "data:,"}]},
        ],
        "input[1].content[0]",
    ),
    ([{"role": "user", "content": [{"type": "input_file"}]}], "input[0].content[0].type"),
    ([{"type": "item_reference", "id": "msg_1"}], "input[0].type"),
    ([{"type": "reasoning", "summary": []}], "input[0].type"),
    ([{"type": "message", "content": "a"}], "input[0].role"),
    ([{"type": "function_call", "name": "f", "arguments": "{}"}], "input[0].call_id"),
    ([{"type": "function_call_output", "call_id": "c"}], "input[0].output"),
    ("a " * 70_000, "input"),
]


@pytest.mark.parametrize(("given", "param"), BAD)
def test_what_input_can_not_be(server: ServerProcess, given: Any, param: str) -> None:
    for streamed in (False, True):
        body = {"input": given, "stream": streamed}
        answer = httpx.post(server.url + "/v1/responses", json=body, timeout=30)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == param
        assert error["message"].startswith(param)


def test_errors_speak_of_this_routes_fields(server: ServerProcess, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="send the earlier items in input") as earlier:
        client.responses.create(model="echo", input="a", previous_response_id="resp_1")
    assert earlier.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.responses.create(model="other", input="a")
    for schema in ({"type": "nothing"}, {"type": "array", "uniqueItems": True}):
        text: Any = {"format": {"type": "json_schema", "name": "a", "schema": schema}}
        with pytest.raises(openai.BadRequestError) as bad:
            client.responses.create(model="echo", input="a", text=text)
        assert bad.value.param == "text.format"
        assert "text.format" in bad.value.message
        assert "response_format" not in bad.value.message
    part = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    broken: Any = [{"role": "user", "content": [part]}]
    with pytest.raises(openai.BadRequestError, match=r"images\[0\]"):
        client.responses.create(model="echo", input=broken)
    tool: Any = {"type": "function", "name": "f", "parameters": {}, "strict": True}
    with pytest.raises(openai.BadRequestError) as toolless:
        client.responses.create(model="echo", input="a", tools=[tool])
    assert toolless.value.param == "tools"


def test_a_deadline_leaves_a_response_incomplete(server: ServerProcess) -> None:
    response = create(server, input="a", ignore_eos=True, timeout_s=0.5)
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": None}
    assert text_of(response)


def test_a_response_that_fails_says_so(server: ServerProcess, client: openai.OpenAI) -> None:
    """The last test here: it ends the server."""
    (engine,) = [
        child
        for child in psutil.Process(server.process.pid).children(recursive=True)
        if any("stub_engine" in word for word in child.cmdline())
    ]
    events = []
    for event in client.responses.create(
        model="echo", input="a", stream=True, extra_body={"ignore_eos": True}
    ):
        events.append(event)
        if len(events) == 8:
            engine.kill()
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error is not None
    assert last.response.error.code == "server_error"
    assert last.response.output
    assert last.sequence_number == len(events) - 1
    assert server.wait() == 1
