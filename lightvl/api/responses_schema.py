"""Body of `/v1/responses`; what becomes of its fields is in `openai_rules`."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lightvl.api.openai_schema import Detail, RefusalPart, StreamOptions
from lightvl.api.schema import Int64, PositiveInt, Timeout


class InputText(msgspec.Struct, frozen=True, kw_only=True, tag="input_text"):
    """A text part of what a client says."""

    text: str


class OutputText(msgspec.Struct, frozen=True, kw_only=True, tag="output_text"):
    """A text part of an earlier answer."""

    text: str


class InputImage(msgspec.Struct, frozen=True, kw_only=True, tag="input_image"):
    """A picture part; `image_url` is an address or a data URL."""

    image_url: str | None = None
    file_id: str | None = None
    detail: Detail | None = None


InputPart = InputText | OutputText | RefusalPart | InputImage


class InputItem(msgspec.Struct, frozen=True, kw_only=True):
    """One of `input`: a message, a call that an earlier answer made, or a call's result."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True):
    """One of `tools`; `strict` makes no difference, a demanded call always keeps its schema."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(msgspec.Struct, frozen=True, kw_only=True, tag="function"):
    """A `tool_choice` that names a tool."""

    name: str


class AllowedFunctions(msgspec.Struct, frozen=True, kw_only=True, tag="allowed_tools"):
    """A `tool_choice` that leaves some of the tools."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Meta(min_length=1, max_length=128)]


class TextFormat(msgspec.Struct, frozen=True, kw_only=True):
    """`text.format`: text, json_object or json_schema."""

    type: str
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`text`."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ResponsesBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `/v1/responses`, and this server's own fields as on the other routes."""

    input: str | Annotated[list[InputItem], Meta(min_length=1)]
    model: str | None = None
    instructions: str | None = None
    include: list[str] | None = None
    max_output_tokens: PositiveInt | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    text: TextConfig | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | AllowedFunctions | None = (
        None
    )
    tools: Annotated[list[FunctionTool], Meta(max_length=128)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None

    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    seed: Int64 | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    timeout_s: Timeout | None = None

    access_programs: Any = None
    background: bool | None = None
    background_options: Any = None
    context_management: Any = None
    conversation: Any = None
    image: Any = None
    max_tool_calls: PositiveInt | None = None
    metadata: dict[str, str] | None = None
    moderation: Any = None
    previous_response_id: Any = None
    prompt: Any = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning: dict[str, Any] | None = None
    safety_identifier: str | None = None
    service_tier: Any = None
    store: bool | None = None
    truncation: str | None = None
    user: str | None = None
