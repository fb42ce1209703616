"""From a conversation to the prompt that the checkpoint's chat template makes of it."""

from collections.abc import Sequence
from typing import Any

import msgspec

from lightvl.api.generation import ChatPrompt
from lightvl.api.openai_schema import ChatMessage, EarlierCall, ImagePart
from lightvl.errors import RequestError
from lightvl.multimodal.pool import ImageSource
from lightvl.multimodal.prompt import flatten_content, new_marker
from lightvl.tokenizer.tokenizer import Tokenizer


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    tools: list[dict[str, Any]] | None = None,
) -> tuple[ChatPrompt, tuple[ImageSource, ...]]:
    """Returns the conversation as the checkpoint's template writes it, and its pictures.

    Args:
        tokenizer: With the checkpoint's chat template.
        messages: Each content part stands where its picture or text goes.
        tools: As the template takes them.

    Raises:
        RequestError: A picture outside a user's message, or the template refuses the messages.
    """
    marker = new_marker()
    turns, images = [], []
    for i, message in enumerate(messages):
        if message.tool_calls is not None and message.role != "assistant":
            name = f"messages[{i}].tool_calls"
            raise RequestError(f"{name}: stand in assistant messages only", param=name)
        content = message.content if message.content is not None else message.refusal
        if content is None:
            if not message.tool_calls:
                raise RequestError(
                    f"messages[{i}].content: required", param=f"messages[{i}].content"
                )
            content = ""
        if not isinstance(content, str):
            pictures = [part for part in content if isinstance(part, ImagePart)]
            if pictures and message.role != "user":
                raise RequestError(
                    f"messages[{i}].content: pictures stand in user messages only",
                    param=f"messages[{i}].content",
                )
            images += [_source(part) for part in pictures]
            parts = [None if isinstance(part, ImagePart) else part.text for part in content]
            content = flatten_content(parts, marker)
        role = "system" if message.role == "developer" else message.role
        turn: dict[str, Any] = {"role": role, "content": content}
        if message.tool_calls:
            turn["tool_calls"] = [_earlier(call) for call in message.tool_calls]
        turns.append(turn)
    return ChatPrompt(tokenizer.render_chat(turns, tools=tools), marker), tuple(images)


def _earlier(call: EarlierCall) -> dict[str, Any]:
    """Returns a call as templates take it: the arguments as what they say, not as text."""
    try:
        arguments: object = msgspec.json.decode(call.function.arguments)
    except (msgspec.DecodeError, RecursionError):
        arguments = call.function.arguments
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _source(part: ImagePart) -> ImageSource:
    image = part.image_url
    return ImageSource("url", image.url, max_tiles=1 if image.detail == "low" else None)
