"""Tools in the form that ChatML templates with `<tool_call>` use (Hermes, Qwen).

A call is `<tool_call>`, a JSON object with `name` and `arguments`, `</tool_call>`. Nothing makes a
model call a tool unless `tool_choice` does: then a grammar of exactly such calls holds what is
drawn.
"""

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

import msgspec

from lightvl.api.constraint import MAX_BYTES
from lightvl.api.openai_schema import ChatBody, Function, NamedTool
from lightvl.errors import RequestError
from lightvl.types import JSON_OPTIONS, Constraint

BEGIN, END = "<tool_call>", "</tool_call>"

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MOST_CALLS = 8
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def may_call(body: ChatBody) -> bool:
    """Whether calls of tools are looked for in the answer."""
    return bool(body.tools) and body.tool_choice != "none"


def template_tools(body: ChatBody) -> list[dict[str, Any]] | None:
    """Returns the tools as the chat template takes them; None where none may be called.

    Raises:
        RequestError: The choice allows a tool that isn't there.
    """
    if not may_call(body):
        return None
    allowed, mode = _allowed(body)
    if mode != "auto":  # what is held by a grammar needs no hiding, and prompts stay the same
        allowed = [tool.function for tool in body.tools or ()]
    return [{"type": "function", "function": _described(function)} for function in allowed]


def _described(function: Function) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(function)
    return {k: v for k, v in fields.items() if k != "strict" and v is not None}


def tool_constraint(body: ChatBody) -> Constraint | None:
    """Returns the grammar of the calls that `tool_choice` demands, or None.

    Raises:
        RequestError: The tools and the choice don't fit each other; names the field.
    """
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise RequestError("tool_choice: there are no tools", param="tool_choice")
        return None
    functions, choice = _allowed(body)
    if choice in (None, "none", "auto"):
        return None
    if body.response_format is not None and body.response_format.type != "text":
        raise RequestError(
            "response_format: not together with a tool_choice that demands a call",
            param="response_format",
        )
    several = body.parallel_tool_calls is not False and choice == "required"
    text = _grammar(functions, several)
    if len(text.encode()) > MAX_BYTES:
        raise RequestError(f"tools: expected at most {MAX_BYTES} bytes", param="tools")
    return Constraint(kind="lark", text=text, field="tools")


def _allowed(body: ChatBody) -> tuple[list[Function], str | None]:
    """Returns the functions that may be called, and the mode; `named` demands one call."""
    functions = [tool.function for tool in body.tools or ()]
    for i, function in enumerate(functions):
        if not _NAME.fullmatch(function.name):
            raise RequestError(
                f"tools[{i}]: its name has characters beside letters, digits, _ and -, or over 64",
                param="tools",
            )
    choice = body.tool_choice
    if choice is None or isinstance(choice, str):
        return functions, choice
    if isinstance(choice, NamedTool):
        names, mode = [choice.function.name], "named"
    else:
        names = [tool.function.name for tool in choice.allowed_tools.tools]
        mode = choice.allowed_tools.mode
    if unknown := set(names).difference(f.name for f in functions):
        raise RequestError(f"tool_choice: {min(unknown)!r} is no tool here", param="tool_choice")
    return [f for f in functions if f.name in names], mode


def _grammar(functions: list[Function], several: bool) -> str:
    more = f' ("\\n" call){{0,{_MOST_CALLS - 1}}}' if several else ""
    lines = [f"start: call{more}", "call: " + " | ".join(f"f{i}" for i in range(len(functions)))]
    for i, function in enumerate(functions):
        head = f'{BEGIN}\n{{"name": "{function.name}", "arguments": '
        lines.append(f"f{i}: {json.dumps(head)} a{i} {json.dumps('}' + chr(10) + END)}")
        schema: dict[str, Any] = (
            _NO_PARAMETERS if function.parameters is None else function.parameters
        )
        schema = {**schema, "x-guidance": JSON_OPTIONS}
        lines.append(f"a{i}: %json {msgspec.json.encode(schema).decode()}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model made; `arguments` is JSON text."""

    name: str
    arguments: str

    def body(self, index: int | None = None) -> dict[str, object]:
        """Returns it as OpenAI's answers have it; `index` is for streams."""
        function = {"name": self.name, "arguments": self.arguments}
        call: dict[str, object] = {"id": f"call_{secrets.token_hex(12)}"}
        call |= {"type": "function", "function": function}
        return call if index is None else {"index": index, **call}


class ToolParser:
    """Takes calls out of a text that comes in pieces; what is no call stays text."""

    def __init__(self) -> None:
        self._held = ""
        self.num_calls = 0

    def push(self, piece: str, *, last: bool = False) -> tuple[str, list[ToolCall]]:
        """Takes the next piece.

        Returns:
            Text that is surely no call, and the calls that are complete.
        """
        held, text, calls = self._held + piece, "", []
        while held:
            at = held.find(BEGIN)
            if at < 0:
                keep = 0 if last else _overlap(held)
                text += held[: len(held) - keep]
                held = held[len(held) - keep :]
                break
            text, held = text + held[:at], held[at:]
            end = held.find(END)
            while end >= 0 and (call := _call(held[len(BEGIN) : end])) is None:
                end = held.find(END, end + 1)  # it may be spelled inside a string
            if end < 0:
                if last:
                    text, held = text + held, ""
                break
            assert call is not None
            calls.append(call)
            held = held[end + len(END) :]
        self._held = held
        self.num_calls += len(calls)
        if self.num_calls and not text.strip():  # what separates calls
            text = ""
        return text, calls


def _overlap(text: str) -> int:
    """Returns how much of the text's end may begin a call."""
    return next((n for n in range(len(BEGIN) - 1, 0, -1) if text.endswith(BEGIN[:n])), 0)


def _call(text: str) -> ToolCall | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", {})
    spelled = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(value["name"], spelled)
