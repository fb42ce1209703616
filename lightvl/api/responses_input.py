"""From a body of `/v1/responses` to the chat completion that asks for the same."""

from collections.abc import Sequence

from lightvl.api.openai_rules import REFUSED_BY_RESPONSES, check_fields, check_stream_options
from lightvl.api.openai_schema import (
    AllowedSet,
    AllowedTool,
    AllowedTools,
    CalledFunction,
    ChatBody,
    ChatMessage,
    ContentPart,
    EarlierCall,
    Function,
    FunctionName,
    ImagePart,
    ImageUrl,
    JsonSchema,
    NamedTool,
    ResponseFormat,
    TextPart,
    Tool,
    ToolChoice,
)
from lightvl.api.responses_schema import (
    AllowedFunctions,
    InputImage,
    InputItem,
    InputPart,
    NamedFunction,
    ResponsesBody,
)
from lightvl.errors import RequestError

NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "response_format": "text.format",
}
"""What fields of a chat completion are called here."""

LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = frozenset(
    {
        LOGPROBS,
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)


def check_responses(body: ResponsesBody) -> None:
    """Refuses what a known field asks for and this server lacks.

    Raises:
        RequestError: 400 naming the field.
    """
    check_fields(body, REFUSED_BY_RESPONSES)
    check_stream_options(body.stream_options, body.stream)
    if body.text is not None and body.text.verbosity not in (None, "medium"):
        raise RequestError('text.verbosity: expected "medium"', param="text.verbosity")
    for name in body.include or ():
        if name not in _INCLUDABLE:
            raise RequestError(f"include: {name!r} is unknown", param="include")
    for name, value in (body.reasoning or {}).items():
        if value is not None and (name, value) != ("effort", "none"):
            raise RequestError(f"reasoning.{name}: not supported", param=f"reasoning.{name}")


def wants_logprobs(body: ResponsesBody) -> bool:
    """Whether the answer's text comes with logprobs."""
    return LOGPROBS in (body.include or ()) or bool(body.top_logprobs)


def chat_body(body: ResponsesBody) -> ChatBody:
    """Returns the chat completion that asks for the same.

    Raises:
        RequestError: 400 naming the field; see `NAMES` for what later checks call them.
    """
    logprobs = wants_logprobs(body)
    return ChatBody(
        model=body.model,
        messages=_messages(body),
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        seed=body.seed,
        stop=body.stop,
        ignore_eos=body.ignore_eos,
        priority=body.priority,
        timeout_s=body.timeout_s,
        stream=body.stream,
        logprobs=logprobs,
        top_logprobs=body.top_logprobs if logprobs else None,
        response_format=_response_format(body),
        tools=_tools(body),
        tool_choice=_tool_choice(body),
        parallel_tool_calls=body.parallel_tool_calls,
    )


def _messages(body: ResponsesBody) -> list[ChatMessage]:
    messages = []
    if body.instructions is not None:
        messages.append(ChatMessage(role="system", content=body.instructions))
    if isinstance(body.input, str):
        return [*messages, ChatMessage(role="user", content=body.input)]
    calls: list[EarlierCall] = []
    for i, item in enumerate(body.input):
        if item.type == "function_call":
            calls.append(_call(item, i))
            continue
        _close_turn(messages, calls)
        messages.append(_result(item, i) if item.type != "message" else _message(item, i))
    _close_turn(messages, calls)
    return messages


def _close_turn(messages: list[ChatMessage], calls: list[EarlierCall]) -> None:
    """Puts calls into the assistant's message that they follow, or into one of their own."""
    if not calls:
        return
    content = None
    if messages and messages[-1].role == "assistant" and not messages[-1].tool_calls:
        content = messages.pop().content
    messages.append(ChatMessage(role="assistant", content=content, tool_calls=list(calls)))
    calls.clear()


def _message(item: InputItem, i: int) -> ChatMessage:
    if item.role is None:
        raise _missing(i, "role")
    if item.content is None:
        raise _missing(i, "content")
    if isinstance(item.content, str):
        return ChatMessage(role=item.role, content=item.content)
    parts = _parts(item.content, f"input[{i}].content", pictures=item.role == "user")
    return ChatMessage(role=item.role, content=parts)


def _call(item: InputItem, i: int) -> EarlierCall:
    for name in ("call_id", "name", "arguments"):
        if getattr(item, name) is None:
            raise _missing(i, name)
    function = CalledFunction(name=item.name or "", arguments=item.arguments or "")
    return EarlierCall(id=item.call_id, function=function)


def _result(item: InputItem, i: int) -> ChatMessage:
    if item.call_id is None:
        raise _missing(i, "call_id")
    if item.output is None:
        raise _missing(i, "output")
    content: str | list[ContentPart]
    if isinstance(item.output, str):
        content = item.output
    else:
        content = _parts(item.output, f"input[{i}].output", pictures=False)
    return ChatMessage(role="tool", content=content, tool_call_id=item.call_id)


def _parts(parts: Sequence[InputPart], field: str, *, pictures: bool) -> list[ContentPart]:
    found: list[ContentPart] = []
    for j, part in enumerate(parts):
        if not isinstance(part, InputImage):
            found.append(TextPart(text=part.text))
            continue
        name = f"{field}[{j}]"
        if not pictures:
            raise RequestError(f"{name}: pictures stand in user messages only", param=name)
        if part.file_id is not None:
            raise RequestError(f"{name}.file_id: no files are stored", param=f"{name}.file_id")
        if part.image_url is None:
            raise RequestError(f"{name}.image_url: required", param=f"{name}.image_url")
        found.append(ImagePart(image_url=ImageUrl(url=part.image_url, detail=part.detail)))
    return found


def _missing(i: int, name: str) -> RequestError:
    return RequestError(f"input[{i}].{name}: required", param=f"input[{i}].{name}")


def _response_format(body: ResponsesBody) -> ResponseFormat | None:
    if body.text is None or body.text.format is None:
        return None
    asked = body.text.format
    if asked.type != "json_schema":
        return ResponseFormat(type=asked.type)
    if asked.schema is None:
        raise RequestError("text.format.schema: required", param="text.format.schema")
    return ResponseFormat(
        type="json_schema", json_schema=JsonSchema(name=asked.name or "", schema=asked.schema)
    )


def _tools(body: ResponsesBody) -> list[Tool] | None:
    return [
        Tool(
            function=Function(
                name=tool.name, description=tool.description, parameters=tool.parameters
            )
        )
        for tool in body.tools or ()
    ] or None


def _tool_choice(body: ResponsesBody) -> ToolChoice | None:
    choice = body.tool_choice
    if isinstance(choice, NamedFunction):
        return NamedTool(function=FunctionName(name=choice.name))
    if isinstance(choice, AllowedFunctions):
        names = [FunctionName(name=tool.name) for tool in choice.tools]
        tools = [AllowedTool(function=name) for name in names]
        return AllowedTools(allowed_tools=AllowedSet(mode=choice.mode, tools=tools))
    return choice
