"""The official `openai` client against the stub engine, which echoes the prompt."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from lightvl.api.openai_schema import MAX_PROMPTS
from lightvl.testing.server import ServerProcess

WORDS = "hello world, nice to meet you"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--model_name", "echo") as process:
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as opened:
        yield opened


def picture_url(seed: int = 0, size: tuple[int, int] = (60, 40)) -> str:
    file = io.BytesIO()
    Image.new("RGB", size, (seed % 256, 5, 77)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def user(*parts: str) -> Any:
    """A user message; parts that begin with `data:` are pictures."""
    content = [
        {"type": "image_url", "image_url": {"url": part}}
        if part.startswith("data:")
        else {"type": "text", "text": part}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


def rendered(client: openai.OpenAI, messages: Any) -> str:
    """What the chat template makes of messages: the stub says it again, ends ignored."""
    probe = client.chat.completions.create(
        model="echo", messages=messages, max_tokens=1, extra_body={"ignore_eos": True}
    )
    assert probe.usage is not None
    whole = client.chat.completions.create(
        model="echo",
        messages=messages,
        max_tokens=probe.usage.prompt_tokens,
        extra_body={"ignore_eos": True},
    )
    return whole.choices[0].message.content or ""


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").id == "echo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_chat(client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": WORDS},
        {"role": "assistant", "content": "And you."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Good"}, {"type": "text", "text": "bye"}],
        },
    ]
    text = rendered(client, messages)
    for part in ("system\nBe brief.", f"user\n{WORDS}", "assistant\nAnd you.", "user\nGoodbye"):
        assert part in text
    answer = client.chat.completions.create(model="echo", messages=messages, max_tokens=5)
    assert answer.object == "chat.completion"
    assert answer.model == "echo"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "a"}]
    answer = client.chat.completions.create(model="echo", messages=messages, max_tokens=3)
    messages += [answer.choices[0].message, {"role": "user", "content": "b"}]
    assert client.chat.completions.create(model="echo", messages=messages, max_tokens=3).choices


def test_accepted_without_effect(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="echo",
        messages=[{"role": "user", "content": "a"}],
        max_completion_tokens=3,
        user="me",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        seed=7,
        temperature=0.3,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logit_bias={"5": 1},
        response_format={"type": "text"},
        extra_body={"priority": 3, "top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1},
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_a_chat_stream(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "grüße 🙂 " + WORDS}]
    whole = client.chat.completions.create(model="echo", messages=messages, max_tokens=40)
    chunks = list(
        client.chat.completions.create(
            model="echo",
            messages=messages,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    extension = (chunks[-1].usage.model_extra or {}).pop("lightvl")
    assert extension["images"] == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_streams_bytes(server: ServerProcess) -> None:
    body = {"prompt": [310, 317], "max_tokens": 2, "stream": True}
    answer = httpx.post(server.url + "/v1/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
    last = json.loads(events[-3].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] == "length"


def test_several_sequences(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "a"}]
    answer = client.chat.completions.create(model="echo", messages=messages, n=3, max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    texts = ["", "", ""]
    ends = []
    for chunk in client.chat.completions.create(
        model="echo", messages=messages, n=3, max_tokens=4, stream=True
    ):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    assert texts == [choice.message.content for choice in answer.choices]
    assert sorted(ends) == [0, 1, 2]


def test_several_streamed_texts_have_their_index_and_one_usage(client: openai.OpenAI) -> None:
    options: Any = {"model": "echo", "prompt": WORDS, "n": 3, "max_tokens": 5}
    whole = client.completions.create(**options)
    *chunks, last = client.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    )
    texts = ["", "", ""]
    for chunk in chunks:
        assert chunk.usage is None
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens == 15
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens


@pytest.mark.parametrize("stop", ["nice", ["zzz", "nice"]])
def test_a_stop_string_is_not_shown(client: openai.OpenAI, stop: Any) -> None:
    answer = client.completions.create(model="echo", prompt=WORDS, max_tokens=40, stop=stop)
    assert answer.choices[0].text == "hello world, "
    assert answer.choices[0].finish_reason == "stop"
    streamed = client.completions.create(
        model="echo", prompt=WORDS, max_tokens=40, stop=stop, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == "hello world, "


def test_chat_logprobs(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "é"}]
    options: Any = {"model": "echo", "messages": messages, "max_tokens": 6, "logprobs": True}
    answer = client.chat.completions.create(**options, top_logprobs=2)
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content or []
    assert len(tokens) == 6
    assert [token.logprob for token in tokens] == [-0.5] * 6
    assert [[top.logprob for top in token.top_logprobs] for token in tokens] == [[-0.5, -1.5]] * 6
    spelled = b"".join(bytes(token.bytes or []) for token in tokens)
    assert (answer.choices[0].message.content or "").encode() in spelled
    streamed = client.chat.completions.create(**options, stream=True)
    logprobs = [chunk.choices[0].logprobs for chunk in streamed]
    assert [len(part.content or []) for part in logprobs if part is not None] == [1] * 6


def test_completion_logprobs(client: openai.OpenAI) -> None:
    options: Any = {"model": "echo", "prompt": WORDS, "max_tokens": 5, "logprobs": 1}
    answer = client.completions.create(**options)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.text_offset == [len("".join((found.tokens or [])[:i])) for i in range(5)]
    assert "".join(found.tokens or []) == answer.choices[0].text
    parts = [
        chunk.choices[0].logprobs for chunk in client.completions.create(**options, stream=True)
    ]
    offsets = [offset for part in parts if part is not None for offset in part.text_offset or []]
    assert offsets == found.text_offset


def test_completions_of_several_prompts(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="echo", prompt=["hello", "good bye"], max_tokens=2, n=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in answer.choices]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    ids = client.completions.create(model="echo", prompt=[310, 317], max_tokens=2)
    assert ids.usage is not None
    assert ids.usage.prompt_tokens == 2
    default = client.completions.create(model="echo", prompt=WORDS)
    assert default.usage is not None
    assert default.usage.completion_tokens == 16
    most = client.completions.create(model="echo", prompt=["a"] * MAX_PROMPTS, max_tokens=1)
    assert len(most.choices) == MAX_PROMPTS
    with pytest.raises(openai.BadRequestError, match="expected at most"):
        client.completions.create(model="echo", prompt=["a"] * (MAX_PROMPTS + 1), max_tokens=1)


def test_pictures_stand_where_they_are(client: openai.OpenAI) -> None:
    image = picture_url(1)
    text = rendered(client, user("before ", image, "after ", picture_url(2), "end"))
    assert "before " in text.split("after ")[0]
    assert text.index("before ") < text.index("after ") < text.index("end")
    answer = client.chat.completions.create(
        model="echo", messages=user("before ", image, "after"), max_tokens=1
    )
    assert answer.usage is not None
    details: Any = answer.usage.prompt_tokens_details
    assert details.image_tokens > 0
    assert details.cached_image_tokens == details.image_tokens


def image_tokens(client: openai.OpenAI, messages: Any) -> int:
    answer = client.chat.completions.create(model="echo", messages=messages, max_tokens=1)
    assert answer.usage is not None
    details: Any = answer.usage.prompt_tokens_details
    return int(details.image_tokens)


def test_spelled_placeholders_are_places_only_when_their_number_fits(
    client: openai.OpenAI,
) -> None:
    image = picture_url(3)
    one = image_tokens(client, user(image, "x"))
    assert one > 0
    assert image_tokens(client, user("a <image> b", image)) == one
    assert image_tokens(client, user("a <image> b <image>", image)) == one
    assert "<image>" not in rendered(client, user("a <image> b", image))
    assert rendered(client, user("a <image> b <image>", image)).count("<image>") == 2
    assert image_tokens(client, user("only <image> text")) == 0
    system: Any = [{"role": "system", "content": "see <image>"}, *user(image, "x")]
    assert image_tokens(client, system) == one


def test_a_streamed_answer_about_a_picture(client: openai.OpenAI) -> None:
    messages = user(picture_url(4, (300, 500)), "What is this?")
    whole = client.chat.completions.create(model="echo", messages=messages, max_tokens=8)
    streamed = client.chat.completions.create(
        model="echo", messages=messages, max_tokens=8, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == whole.choices[0].message.content


def test_a_picture_of_low_detail_is_one_tile(client: openai.OpenAI) -> None:
    url = picture_url(5, (900, 300))
    tokens = {}
    for detail in ("low", "high", "auto"):
        part = {"type": "image_url", "image_url": {"url": url, "detail": detail}}
        tokens[detail] = image_tokens(client, [{"role": "user", "content": [part]}])
    assert tokens["low"] < tokens["high"] == tokens["auto"]
    assert tokens["high"] % tokens["low"] == 0
    low, high = (
        {"type": "image_url", "image_url": {"url": url, "detail": detail}}
        for detail in ("low", "high")
    )
    both = image_tokens(client, [{"role": "user", "content": [low, high]}])
    assert both == tokens["low"] + tokens["high"]


def test_pictures_in_completions(client: openai.OpenAI) -> None:
    data = picture_url(6).partition(",")[2]
    images = [{"type": "base64", "data": data}]
    answer = client.completions.create(
        model="echo",
        prompt="<image> and <IMG_CONTEXT>",
        max_tokens=1,
        extra_body={"multimodal_params": {"images": images}},
    )
    assert answer.usage is not None
    details: Any = answer.usage.prompt_tokens_details
    assert details.image_tokens > 0


def test_refusals_reach_the_clients_exceptions(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "a"}]
    with pytest.raises(openai.BadRequestError, match="tools: this model") as refused:
        client.chat.completions.create(
            model="echo",
            messages=messages,
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    assert refused.value.param == "tools"
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.chat.completions.create(model="gpt", messages=messages)
    with pytest.raises(openai.BadRequestError) as broken:
        client.chat.completions.create(
            model="echo", messages=user("data:image/png;base64,AAAA"), stream=True
        )
    assert "images[0]" in broken.value.message
