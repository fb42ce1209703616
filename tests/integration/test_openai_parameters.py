"""Every parameter that the installed `openai` package knows is obeyed, without effect or refused.

A parameter that a new version of the package brings fails here until it is given its row.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as ChatParams
from openai.types.completion_create_params import (
    CompletionCreateParamsStreaming as CompletionParams,
)
from openai.types.responses.response_create_params import (
    ResponseCreateParamsStreaming as ResponseParams,
)

from lightvl.api.openai_rules import (
    ONE_VALUE,
    REFUSED_BY_CHAT,
    REFUSED_BY_RESPONSES,
    WITHOUT_EFFECT,
)
from lightvl.testing.server import ServerProcess

SCHEMA: Any = {"type": "object", "properties": {"a": {"type": "integer"}}}


class Obeyed(NamedTuple):
    """Has an effect, which tests of its own show; here: what is taken and what is a 400."""

    good: list[Any]
    bad: list[Any]
    beside: Mapping[str, Any] = MappingProxyType({})


class Ignored(NamedTuple):
    """Taken, and the answer is the same."""

    values: list[Any]


class Only(NamedTuple):
    """Taken with what is done anyway; anything else is a 400."""

    value: Any
    bad: list[Any]


class Refused(NamedTuple):
    """A 400, null aside."""

    values: list[Any]


Rows = dict[str, Obeyed | Ignored | Only | Refused]

STREAM: Any = {"stream": True}
COMMON: Rows = {
    "model": Obeyed(["m", None], [5]),
    "frequency_penalty": Obeyed([0.5, -2, None], [2.1, "a"]),
    "logit_bias": Obeyed([{"5": 1}, {}, None], [{"5": 101}, {"a": 1}, []]),
    "max_tokens": Obeyed([3, None], [0, -1, 1.5]),
    "n": Obeyed([2, None], [0, 9]),
    "presence_penalty": Obeyed([0.5, -2, None], [-2.1, "a"]),
    "seed": Obeyed([7, -7, None], ["a", 0.5]),
    "stop": Obeyed(["x", ["x", "y"], None], [[1], "", {}]),
    "stream": Obeyed([True, False, None], [1, "a"]),
    "stream_options": Obeyed(
        [{"include_usage": True}, {"include_obfuscation": False}, {}, None],
        [{"include_obfuscation": True}, {"new": True}, 5],
        STREAM,
    ),
    "temperature": Obeyed([0, 1.5, None], [-0.1, "a"]),
    "top_p": Obeyed([0.5, 1, None], [0, 1.1]),
    "user": Ignored(["me", None]),
}
STORED: Rows = {
    "metadata": Ignored([{"a": "b"}, {}, None]),
    "prompt_cache_key": Ignored(["k", None]),
    "prompt_cache_options": Ignored([{"mode": "implicit"}, None]),
    "prompt_cache_retention": Ignored(["24h", None]),
    "safety_identifier": Ignored(["s", None]),
    "service_tier": Ignored(["auto", "default", "flex", None]),
    "store": Ignored([True, False, None]),
    "moderation": Refused([{"model": "m"}]),
}
MESSAGES: Any = [{"role": "user", "content": "hello"}]
CHAT: Rows = {
    **COMMON,
    **STORED,
    "messages": Obeyed([MESSAGES], [[], "a", None]),
    "audio": Refused([{"voice": "a", "format": "wav"}]),
    "function_call": Refused(["auto", {"name": "f"}]),
    "functions": Refused([[{"name": "f"}]]),
    "logprobs": Obeyed([True, False, None], [1]),
    "max_completion_tokens": Obeyed([3, None], [0, "a"]),
    "modalities": Only(["text"], [["audio"], ["text", "audio"], [], "text"]),
    "parallel_tool_calls": Obeyed([True, False, None], ["a"]),
    "prediction": Ignored([{"type": "content", "content": "hello"}, None]),
    "reasoning_effort": Only("none", ["low", "high", 5]),
    "response_format": Obeyed(
        [
            {"type": "text"},
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
            None,
        ],
        [{"type": "xml"}, {"type": "json_schema"}, {}],
    ),
    "tool_choice": Obeyed(["none", "auto", None], ["required", {"type": "custom"}, "b"]),
    "tools": Obeyed([None], [[], [{"type": "custom", "custom": {"name": "f"}}]]),
    "top_logprobs": Obeyed([0, 20, None], [21, -1], {"logprobs": True}),
    "verbosity": Only("medium", ["low", "high"]),
    "web_search_options": Refused([{}]),
}
COMPLETION: Rows = {
    **COMMON,
    "prompt": Obeyed(["a", ["a", "b"], [5, 6], [[5], [6]]], [None, [], ["a", 5]]),
    "best_of": Obeyed([1, None], [2, 0]),
    "echo": Only(False, [True]),
    "logprobs": Obeyed([0, 20, None], [True, 21, -1]),
    "suffix": Refused(["a"]),
}
NOT_FOR_RESPONSES = {
    *("frequency_penalty", "logit_bias", "max_tokens", "n", "presence_penalty", "seed", "stop")
}
RESPONSE: Rows = {
    **{name: row for name, row in COMMON.items() if name not in NOT_FOR_RESPONSES},
    **STORED,
    "access_programs": Refused([{}]),
    "background": Only(False, [True]),
    "background_options": Refused([{}]),
    "context_management": Refused([[]]),
    "conversation": Refused(["conv_1", {"id": "conv_1"}]),
    "image": Refused([{"context_compression": "enabled"}]),
    "include": Obeyed([["message.output_text.logprobs"], [], None], [["all"], "a"]),
    "input": Obeyed(["a", MESSAGES], [[], None, 5, [{"role": "user"}]]),
    "instructions": Obeyed(["Be brief.", None], [5]),
    "max_output_tokens": Obeyed([3, None], [0, "a"]),
    "max_tool_calls": Ignored([1, None]),
    "parallel_tool_calls": Obeyed([True, False, None], ["a"]),
    "previous_response_id": Refused(["resp_1"]),
    "prompt": Refused([{"id": "p"}]),
    "reasoning": Obeyed([{}, {"effort": "none"}, {"summary": None}, None], [{"effort": "low"}]),
    "text": Obeyed(
        [
            {"format": {"type": "text"}, "verbosity": "medium"},
            {"format": {"type": "json_object"}},
            {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}},
            {},
            None,
        ],
        [
            {"format": {"type": "xml"}},
            {"format": {"type": "json_schema", "name": "a"}},
            {"verbosity": "low"},
            {"new": 1},
        ],
    ),
    "tool_choice": Obeyed(["none", "auto", None], ["required", {"type": "web_search"}, "b"]),
    "tools": Obeyed([[], None], [[{"type": "web_search"}], [{"type": "function"}]]),
    "top_logprobs": Obeyed([0, 20, None], [21, -1]),
    "truncation": Only("disabled", ["auto"]),
}
ROUTES: dict[str, tuple[type, Rows, dict[str, Any]]] = {
    "chat/completions": (ChatParams, CHAT, {"messages": MESSAGES, "max_tokens": 4}),
    "completions": (CompletionParams, COMPLETION, {"prompt": "hello", "max_tokens": 4}),
    "responses": (ResponseParams, RESPONSE, {"input": "hello", "max_output_tokens": 4}),
}


@pytest.fixture(scope="module")
def http() -> Any:
    with (
        ServerProcess("--model_name", "m", "--media_workers", "1") as server,
        httpx.Client(base_url=server.url + "/v1/", timeout=30) as client,
    ):
        yield client


@pytest.mark.parametrize("route", ROUTES)
def test_every_parameter_has_its_row(route: str) -> None:
    params, rows, _ = ROUTES[route]
    assert set(params.__annotations__) == set(rows)


def test_the_tables_of_the_server_are_these() -> None:
    for rows, refused in ((CHAT, REFUSED_BY_CHAT), (RESPONSE, REFUSED_BY_RESPONSES)):
        assert {n for n, row in rows.items() if isinstance(row, Refused)} == set(refused)
    every = CHAT | COMPLETION | RESPONSE
    assert {n for n, row in every.items() if isinstance(row, Ignored)} == set(WITHOUT_EFFECT)
    assert {n for n, row in every.items() if isinstance(row, Only)} == {*ONE_VALUE, "echo"}


def told(row: object) -> str:
    """What the documents say of a row."""
    match row:
        case None:
            return ""
        case Obeyed():
            return "yes"
        case Ignored():
            return "no effect"
        case Only(value):
            return f"only `{json.dumps(value)}`"
    return "400"


def test_the_documents_have_the_same_table() -> None:
    page = (Path(__file__).parents[2] / "docs/openai.md").read_text()
    table = page.split("## Parameters")[1].split("\n\n")[2]
    cells = [[cell.strip() for cell in line.split("|")[1:5]] for line in table.splitlines()[2:]]
    documented = {name.strip("`"): rest for name, *rest in cells}
    names = sorted(CHAT | COMPLETION | RESPONSE)
    assert list(documented) == names
    for name in names:
        assert documented[name] == [told(rows.get(name)) for rows in (CHAT, COMPLETION, RESPONSE)]


def said(answer: httpx.Response) -> Any:
    """What an answer says, without its names and times."""
    found = answer.json()
    if "choices" in found:
        return found["choices"], found["usage"]["total_tokens"]
    return [part["text"] for item in found["output"] for part in item["content"]], found["status"]


@pytest.mark.parametrize(
    ("route", "name"), [(route, name) for route, (_, rows, _) in ROUTES.items() for name in rows]
)
def test_parameters(http: httpx.Client, route: str, name: str) -> None:
    _, rows, body = ROUTES[route]
    row = rows[name]
    beside = dict(row.beside) if isinstance(row, Obeyed) else {}

    def ask(**fields: Any) -> httpx.Response:
        return http.post(route, json={**body, **beside, **fields})

    match row:
        case Obeyed(good, bad):
            for value in good:
                answer = ask(**{name: value})
                assert answer.status_code == 200, (value, answer.text)
        case Ignored(values):
            bad = []
            for value in values:
                assert said(ask(**{name: value})) == said(ask())
        case Only(value, bad):
            assert said(ask(**{name: value})) == said(ask(**{name: None})) == said(ask())
        case Refused(bad):
            assert said(ask(**{name: None})) == said(ask())
    for value in bad:
        answer = ask(**{name: value})
        assert answer.status_code == 400, (value, answer.text)
        error = answer.json()["error"]
        assert error["message"].startswith(name)
        assert error["param"].startswith(name)


def test_an_unknown_parameter_is_refused(http: httpx.Client) -> None:
    for route, (_, _, body) in ROUTES.items():
        answer = http.post(route, json={**body, "glitter": 1})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "glitter"
