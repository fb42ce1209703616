"""Connectors of other projects, as their users write them: a picture goes in, a stream comes out.

They are imported where they are used, since that takes seconds; nothing is asked of the network.
"""

import base64
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lightvl.testing.server import ENGINE, ServerProcess

FACE = base64.b64encode((Path(__file__).parents[2] / "examples/face.png").read_bytes()).decode()
DATA_URL = f"data:image/png;base64,{FACE}"
QUESTION = "What is this?"
ANSWER = "This is a slightly smiling face."


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    flags = ["--model_name", "demo", "--max_total_token_num", "16384", "--media_workers", "1"]
    with ServerProcess(*flags, engine=ENGINE, environment={"OMP_NUM_THREADS": "1"}) as process:
        yield process


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would leave this machine fails at once."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("LANGSMITH_TRACING", "false")


@pytest.mark.parametrize("use_responses_api", [False, True])
def test_langchain(server: ServerProcess, use_responses_api: bool) -> None:
    says = import_module("langchain_core.messages")
    model = import_module("langchain_openai").ChatOpenAI(
        model="demo",
        base_url=server.url + "/v1",
        api_key="none",
        use_responses_api=use_responses_api,
        stream_usage=True,
    )
    parts: list[list[Any]] = [
        [
            {"type": "text", "text": QUESTION},
            {"type": "image_url", "image_url": {"url": DATA_URL}},
        ],
        [
            {"type": "text", "text": QUESTION},
            {"type": "image", "base64": FACE, "mime_type": "image/png"},
        ],
    ]
    for content in parts:
        chunks = list(model.stream([says.HumanMessage(content=content)]))
        assert "".join(chunk.text for chunk in chunks) == ANSWER
        assert sum(bool(chunk.text) for chunk in chunks) > 3
        usages = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
        assert sum(usage["output_tokens"] for usage in usages) == 8
    answer = model.invoke([says.SystemMessage("Be brief."), says.HumanMessage(content=parts[0])])
    assert answer.text
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] > 64


def test_litellm(server: ServerProcess) -> None:
    litellm = import_module("litellm")
    messages: Any = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": QUESTION},
                {"type": "image_url", "image_url": {"url": DATA_URL}},
            ],
        }
    ]
    common: Any = {"model": "openai/demo", "api_base": server.url + "/v1", "api_key": "none"}
    chunks = list(
        litellm.completion(
            messages=messages, stream=True, stream_options={"include_usage": True}, **common
        )
    )
    said = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(said) == ANSWER
    assert sum(bool(text) for text in said) > 3
    assert chunks[-1].usage.completion_tokens == 8
    whole = litellm.completion(
        messages=messages, response_format={"type": "text"}, max_tokens=20, seed=1, **common
    )
    assert whole.choices[0].message.content == ANSWER
    responded = litellm.responses(
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": QUESTION},
                    {"type": "input_image", "image_url": DATA_URL},
                ],
            }
        ],
        **common,
    )
    assert responded.output[0].content[0].text == ANSWER
