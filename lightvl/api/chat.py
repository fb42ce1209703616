"""From a conversation to the prompt that the checkpoint's chat template makes of it."""

from collections.abc import Sequence

from lightvl.api.generation import ChatPrompt
from lightvl.api.openai_schema import ChatMessage, ImagePart
from lightvl.errors import RequestError
from lightvl.multimodal.pool import ImageSource
from lightvl.multimodal.prompt import flatten_content, new_marker
from lightvl.tokenizer.tokenizer import Tokenizer


def render_chat(
    tokenizer: Tokenizer, messages: Sequence[ChatMessage]
) -> tuple[ChatPrompt, tuple[ImageSource, ...]]:
    """Returns the conversation as the checkpoint's template writes it, and its pictures.

    Args:
        tokenizer: With the checkpoint's chat template.
        messages: Each content part stands where its picture or text goes.

    Raises:
        RequestError: A picture outside a user's message, or the template refuses the messages.
    """
    marker = new_marker()
    turns, images = [], []
    for i, message in enumerate(messages):
        content = message.content
        if not isinstance(content, str):
            pictures = [part for part in content if isinstance(part, ImagePart)]
            if pictures and message.role != "user":
                raise RequestError(
                    f"messages[{i}].content: pictures stand in user messages only",
                    param=f"messages[{i}].content",
                )
            images += [ImageSource("url", part.image_url.url) for part in pictures]
            parts = [None if isinstance(part, ImagePart) else part.text for part in content]
            content = flatten_content(parts, marker)
        role = "system" if message.role == "developer" else message.role
        turns.append({"role": role, "content": content})
    return ChatPrompt(tokenizer.render_chat(turns), marker), tuple(images)
