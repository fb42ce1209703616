"""Bodies of the OpenAI routes; an unknown or unsupported field is an error that names it."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lightvl.api.schema import Bias, Int64, MultimodalParams, Penalty, PositiveInt, Timeout
from lightvl.errors import RequestError

Detail = Literal["auto", "low", "high", "original"]
"""Of a picture: `low` is one tile, the others are the checkpoint's own tiling."""

MAX_PROMPTS = 256
"""Of one request to `/v1/completions`; each is prepared in the event loop."""


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True):
    """`json_schema` of a response format; `strict` makes no difference, it is always kept."""

    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """`response_format`: text, json_object or json_schema."""

    type: str
    json_schema: JsonSchema | None = None


class CommonBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both OpenAI routes take."""

    model: str | None = None
    max_tokens: PositiveInt | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    logit_bias: dict[int, Bias] | None = None
    n: Annotated[int, Meta(ge=1, le=8)] | None = None
    seed: Int64 | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    timeout_s: Timeout | None = None
    ignore_eos: bool | None = None
    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None


class ImageUrl(msgspec.Struct, frozen=True, kw_only=True):
    """`image_url` of a content part."""

    url: str
    detail: Detail | None = None


class TextPart(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """A text part of a message's content."""

    text: str


class RefusalPart(msgspec.Struct, frozen=True, kw_only=True, tag="refusal"):
    """A refusal of an earlier answer; here it is text."""

    refusal: str

    @property
    def text(self) -> str:
        """Its text."""
        return self.refusal


class ImagePart(msgspec.Struct, frozen=True, kw_only=True, tag="image_url"):
    """A picture part of a message's content."""

    image_url: ImageUrl


ContentPart = TextPart | ImagePart | RefusalPart


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """`function` of a tool; `strict` makes no difference."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """One of `tools`."""

    function: Function
    type: Literal["function"] = "function"


class FunctionName(msgspec.Struct, frozen=True, kw_only=True):
    """`function` of a tool choice."""

    name: str


class NamedTool(msgspec.Struct, frozen=True, kw_only=True, tag="function"):
    """A `tool_choice` that names a tool."""

    function: FunctionName


class AllowedTool(msgspec.Struct, frozen=True, kw_only=True, tag="function"):
    """One of the tools that a `tool_choice` allows."""

    function: FunctionName


class AllowedSet(msgspec.Struct, frozen=True, kw_only=True):
    """`allowed_tools` of a tool choice."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Meta(min_length=1, max_length=128)]


class AllowedTools(msgspec.Struct, frozen=True, kw_only=True, tag="allowed_tools"):
    """A `tool_choice` that leaves some of the tools."""

    allowed_tools: AllowedSet


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True):
    """`function` of an earlier call; `arguments` is JSON text."""

    name: str
    arguments: str


class EarlierCall(msgspec.Struct, frozen=True, kw_only=True):
    """One of the `tool_calls` of an earlier answer."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] = "function"


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[EarlierCall] | None = None
    tool_call_id: str | None = None
    annotations: Any = None
    audio: None = None
    function_call: None = None


class ChatBody(CommonBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(min_length=1, max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: list[str] | None = None
    moderation: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: str | None = None
    safety_identifier: Any = None
    verbosity: str | None = None
    web_search_options: Any = None


class CompletionBody(CommonBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `/v1/completions`."""

    prompt: str | list[str | int | list[int]]
    best_of: Annotated[int, Meta(ge=1, le=8)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    multimodal_params: MultimodalParams | None = None


def prompts_of(body: CompletionBody) -> list[str | list[int]]:
    """Returns the prompts of a completion: a text, ids, or a list of either.

    Raises:
        RequestError: The list is empty, mixes its kinds or has more than `MAX_PROMPTS`.
    """
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    ids = [item for item in prompt if isinstance(item, int)]
    if ids and len(ids) == len(prompt):
        return [ids]
    prompts = [item for item in prompt if not isinstance(item, int)]
    if not prompts or ids:
        raise RequestError("prompt: expected a text, token ids, or a list of these", param="prompt")
    if len(prompts) > MAX_PROMPTS:
        raise RequestError(
            f"prompt: {len(prompts)} prompts, expected at most {MAX_PROMPTS}", param="prompt"
        )
    return list(prompts)
