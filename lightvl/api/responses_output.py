"""The output items of a response as they grow, and the events that tell of each change.

Whole answers and streams are made by the same object, so that they can't differ.
"""

from typing import Any

from lightvl.api.front import Front
from lightvl.api.generation import TokenEvent
from lightvl.api.openai_parts import chat_logprobs, new_id
from lightvl.api.tools import ToolCall, ToolParser

Json = dict[str, Any]


class OutputItems:
    """Makes messages and function calls of a sequence's tokens.

    Args:
        front: Has the tokenizer.
        calls_tools: Whether calls are taken out of the text.
        logprobs: Whether texts come with their tokens' logprobs.

    Attributes:
        items: The output so far; its parts change until they are done.
    """

    def __init__(self, front: Front, *, calls_tools: bool, logprobs: bool) -> None:
        self.items: list[Json] = []
        self._front = front
        self._parser = ToolParser() if calls_tools else None
        self._wants_logprobs = logprobs
        self._logprobs: list[Json] = []  # of tokens whose text isn't out yet
        self._message: Json | None = None
        self._part: Json = {}
        self._blank = ""  # white space that is dropped if a call follows

    def push(self, event: TokenEvent) -> list[Json]:
        """Takes a token and returns the events that it causes, without sequence numbers."""
        if self._wants_logprobs and event.token_id >= 0:
            self._logprobs += chat_logprobs(self._front, [event])
        ended = event.finish_reason is not None
        text, calls = event.text, list[ToolCall]()
        if self._parser is not None:
            text, calls = self._parser.push(text, last=ended)
        events = self._say(text)
        for call in calls:
            self._blank = ""
            events += [*self._close("completed"), *self._call(call)]
            self._logprobs.clear()
        if ended:
            if not self.items:
                events += self._open()
            events += self._close("completed" if event.finish_reason == "stop" else "incomplete")
        return events

    def _say(self, text: str) -> list[Json]:
        if self._message is None:
            text, self._blank = self._blank + text, ""
            if self._parser is not None and not text.strip():
                self._blank = text
                return []
        if not text:
            return []
        events = self._open() if self._message is None else []
        logprobs, self._logprobs = self._logprobs, []
        self._part["text"] += text
        if self._wants_logprobs:
            self._part["logprobs"] += logprobs
        delta = {"delta": text, "logprobs": logprobs}
        return [*events, self._told("output_text.delta", content_index=0, **delta)]

    def _open(self) -> list[Json]:
        self._part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._message = {
            "type": "message",
            "id": new_id("msg_"),
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        self.items.append(self._message)
        return [
            self._told("output_item.added", item=_copied(self._message)),
            self._told("content_part.added", content_index=0, part=_copied(self._part)),
        ]

    def _close(self, status: str) -> list[Json]:
        message, part = self._message, self._part
        if message is None:
            return []
        if self._wants_logprobs:
            part["logprobs"] += self._logprobs
            self._logprobs = []
        message["status"] = status
        message["content"] = [part]
        told = {"text": part["text"], "logprobs": part["logprobs"]}
        events = [
            self._told("output_text.done", content_index=0, **told),
            self._told("content_part.done", content_index=0, part=part),
            self._told("output_item.done", item=message),
        ]
        self._message = None
        return events

    def _call(self, call: ToolCall) -> list[Json]:
        item: Json = {
            "type": "function_call",
            "id": new_id("fc_"),
            "call_id": new_id("call_"),
            "name": call.name,
            "arguments": "",
            "status": "in_progress",
        }
        self.items.append(item)
        events = [
            self._told("output_item.added", item=_copied(item)),
            self._told("function_call_arguments.delta", delta=call.arguments),
            self._told("function_call_arguments.done", name=call.name, arguments=call.arguments),
        ]
        item |= {"arguments": call.arguments, "status": "completed"}
        return [*events, self._told("output_item.done", item=item)]

    def _told(self, kind: str, **fields: object) -> Json:
        """Returns an event about the last item."""
        index = len(self.items) - 1
        told: Json = {"type": f"response.{kind}", "output_index": index}
        if "item" not in fields:
            told["item_id"] = self.items[index]["id"]
        return told | fields


def _copied(value: Json) -> Json:
    """Returns what later changes of an item or part leave alone."""
    return {k: list(v) if isinstance(v, list) else v for k, v in value.items()}
