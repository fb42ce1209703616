"""What becomes of each field of OpenAI's routes that isn't simply obeyed.

A field is obeyed, or listed here: accepted without effect, held to the values that this server can
honour, or refused. Whatever is neither declared nor listed is an unknown field. `null` means that
a field isn't there. `docs/openai.md` tells the same to readers.
"""

from collections.abc import Mapping

import msgspec

from lightvl.api.openai_schema import ChatBody, CompletionBody, StreamOptions
from lightvl.errors import RequestError

WITHOUT_EFFECT = {
    "max_tool_calls": "bounds calls of built-in tools, of which there are none",
    "metadata": "nothing is stored; responses say it again",
    "prediction": "a hint for speed, the answer is the same",
    "prompt_cache_key": "prefixes are found by what they contain",
    "prompt_cache_options": "prefixes are found by what they contain",
    "prompt_cache_retention": "prefixes are kept as long as there is room",
    "safety_identifier": "says whose request it is to those who watch",
    "service_tier": "there is one tier; see `priority`",
    "store": "nothing is stored",
    "user": "says whose request it is to those who watch",
}
"""Accepted with any value: field and reason."""

ONE_VALUE: dict[str, object] = {
    "background": False,
    "modalities": ["text"],
    "reasoning_effort": "none",
    "truncation": "disabled",
    "verbosity": "medium",
}
"""Fields that are accepted only with what this server does anyway."""

REFUSED_BY_CHAT = {
    "audio": "answers are text",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "moderation": "nothing is moderated",
    "web_search_options": "there is no web search",
}
REFUSED_BY_RESPONSES = {
    "access_programs": "there are none",
    "background_options": "there is no background mode",
    "context_management": "the context is what the request says",
    "conversation": "nothing is stored, send the earlier items in input",
    "image": "pictures are not compressed",
    "moderation": "nothing is moderated",
    "previous_response_id": "nothing is stored, send the earlier items in input",
    "prompt": "no prompts are stored",
}
"""Fields of which any value but null is an error: field and reason."""


def check_fields(body: msgspec.Struct, refused: Mapping[str, str]) -> None:
    """Refuses fields by `ONE_VALUE` and by a table like those above.

    Raises:
        RequestError: 400 naming the field.
    """
    for name, reason in refused.items():
        if getattr(body, name) is not None:
            raise RequestError(f"{name}: not supported, {reason}", param=name)
    for name, allowed in ONE_VALUE.items():
        value = getattr(body, name, None)
        if value is not None and value != allowed:
            expected = msgspec.json.encode(allowed).decode()
            raise RequestError(f"{name}: expected {expected}", param=name)


def check_stream_options(options: StreamOptions | None, stream: bool | None) -> None:
    """Refuses options of a stream that isn't one, and padding.

    Raises:
        RequestError: 400 naming the field.
    """
    if options is None:
        return
    if not stream:
        raise RequestError("stream_options: only with stream true", param="stream_options")
    if options.include_obfuscation:
        raise RequestError(
            "stream_options.include_obfuscation: true is not supported", param="stream_options"
        )


def check_supported(body: ChatBody | CompletionBody) -> None:
    """Refuses what a known field asks for and this server lacks.

    Raises:
        RequestError: 400 naming the field.
    """
    check_stream_options(body.stream_options, body.stream)
    if isinstance(body, ChatBody):
        check_fields(body, REFUSED_BY_CHAT)
        if body.top_logprobs is not None and not body.logprobs:
            raise RequestError("top_logprobs: only with logprobs true", param="top_logprobs")
        return
    if body.echo:
        raise _not_yet("echo", "true")
    if body.suffix is not None:
        raise _not_yet("suffix", "a text")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise RequestError(f"best_of: expected n = {body.n or 1}", param="best_of")


def renamed(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """Returns an error that says of a field what another route calls it.

    Args:
        error: Names a field by `param` and at its message's beginning.
        names: What fields are called elsewhere.
    """
    name = names.get(error.param or "")
    if name is None:
        return error
    message = error.message
    if message.startswith(error.param or ""):
        message = name + message.removeprefix(error.param or "")
    return RequestError(message, error.status, param=name, code=error.code)


def _not_yet(name: str, value: str) -> RequestError:
    return RequestError(f"{name}: {value} is not in this build yet", param=name)
