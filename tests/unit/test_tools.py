"""Tool calls: grammars that demand them, texts that contain them, prompts that describe them."""

import json
from typing import Any

import msgspec
import pytest
from llguidance import LLMatcher

from lightvl.api.openai_schema import ChatBody
from lightvl.api.tools import ToolParser, template_tools, tool_constraint
from lightvl.errors import RequestError
from lightvl.grammar import BYTES, check, library_text
from lightvl.tokenizer.chat_template import ChatTemplate

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"place": {"$ref": "#/$defs/place"}},
            "required": ["place"],
            "additionalProperties": False,
            "$defs": {"place": {"type": "string", "maxLength": 20}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
NAMED_X = {"type": "function", "function": {"name": "x"}}
CALL = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"place":"Köln </tool_call>"}}\n</tool_call>'
)


def body(**fields: Any) -> ChatBody:
    fields = {"messages": [{"role": "user", "content": "a"}], **fields}
    return msgspec.convert(fields, ChatBody)


def accepts(text: str, **fields: Any) -> bool:
    constraint = tool_constraint(body(**fields))
    assert constraint is not None
    check(constraint)
    matcher = LLMatcher(BYTES, library_text(constraint), log_level=0)
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def test_what_a_choice_demands() -> None:
    both = [WEATHER, CLOCK]
    clock = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    named = {"type": "function", "function": {"name": "clock"}}
    assert accepts(CALL, tools=both, tool_choice="required")
    assert accepts(f"{CALL}\n{clock}", tools=both, tool_choice="required")
    assert not accepts(
        f"{CALL}\n{clock}", tools=both, tool_choice="required", parallel_tool_calls=False
    )
    assert accepts(clock, tools=both, tool_choice=named)
    assert not accepts(CALL, tools=both, tool_choice=named)
    assert not accepts(CALL.replace("place", "plaice"), tools=both, tool_choice="required")
    assert not accepts(CALL.replace(':"', ":" + "\n" * 9 + '"'), tools=both, tool_choice="required")
    assert not accepts("Hello", tools=both, tool_choice="required")
    for choice in ("auto", "none", None):
        assert tool_constraint(body(tools=both, tool_choice=choice)) is None


def test_what_is_allowed_of_several() -> None:
    def choice(mode: str, *names: str) -> Any:
        tools = [{"type": "function", "function": {"name": name}} for name in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}

    def shown(choice: Any) -> list[str]:
        tools = template_tools(body(tools=both, tool_choice=choice))
        return [tool["function"]["name"] for tool in tools or ()]

    both = [WEATHER, CLOCK]
    clock = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    assert accepts(clock, tools=both, tool_choice=choice("required", "clock"))
    assert accepts(f"{clock}\n{clock}", tools=both, tool_choice=choice("required", "clock"))
    assert not accepts(CALL, tools=both, tool_choice=choice("required", "clock"))
    assert accepts(CALL, tools=both, tool_choice=choice("required", "clock", "get_weather"))
    assert tool_constraint(body(tools=both, tool_choice=choice("auto", "clock"))) is None
    assert shown(choice("auto", "clock")) == ["clock"]
    assert shown(choice("required", "clock")) == shown("auto") == ["get_weather", "clock"]
    with pytest.raises(RequestError, match="'x' is no tool here"):
        tool_constraint(body(tools=both, tool_choice=choice("auto", "clock", "x")))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": NAMED_X}, "tool_choice"),
        ({"tools": [{"function": {"name": 'a"b'}}]}, "tools"),
        (
            {
                "tools": [CLOCK], "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            "response_format",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        tool_constraint(body(**fields))
    assert refused.value.param == param


TEXTS: list[tuple[str, str, list[str]]] = [
    ("plain < text <tool", "plain < text <tool", []),
    (f"Let me see.\n{CALL}", "Let me see.\n", ["get_weather"]),
    (f"{CALL}\n{CALL}", "", ["get_weather", "get_weather"]),
    ("<tool_call>\nnot JSON\n</tool_call>", "<tool_call>\nnot JSON\n</tool_call>", []),
    ('<tool_call>\n{"name": "f", "argu', '<tool_call>\n{"name": "f", "argu', []),
]


@pytest.mark.parametrize(("text", "plain", "names"), TEXTS)
@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_calls_are_found_however_the_text_is_cut(
    text: str, plain: str, names: list[str], size: int
) -> None:
    parser = ToolParser()
    said, calls = "", []
    for begin in range(0, len(text), size):
        last = begin + size >= len(text)
        piece, found = parser.push(text[begin : begin + size], last=last)
        said += piece
        calls += found
    assert said == plain
    assert [call.name for call in calls] == names
    for call in calls:
        assert json.loads(call.arguments) == {"place": "Köln </tool_call>"}


def test_text_that_can_be_no_call_is_not_held_back() -> None:
    parser = ToolParser()
    assert parser.push("a <too") == ("a ", [])
    assert parser.push("l b") == ("<tool b", [])


def test_templates_get_tools_without_what_they_do_not_know() -> None:
    tools = template_tools(body(tools=[WEATHER, CLOCK]))
    assert tools is not None
    assert "strict" not in tools[0]["function"]
    assert tools[1] == CLOCK
    assert template_tools(body(tools=[WEATHER], tool_choice="none")) is None
    template = ChatTemplate("{% for t in tools %}{{ t | tojson }}{% endfor %}<tool_call>", {})
    assert template.takes_tools
    assert template.render([], tools=[{"a": "<é>"}]) == '{"a": "<é>"}<tool_call>'
    assert not ChatTemplate("{{ messages }}", {}).takes_tools
