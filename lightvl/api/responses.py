"""OpenAI's `/v1/responses`: a chat completion in other words, without memory of earlier ones."""

import time
from dataclasses import replace
from typing import Any

import msgspec

from lightvl.api.exchange import Exchange
from lightvl.api.front import Front
from lightvl.api.generation import Generation, GenerationRequest, TokenEvent
from lightvl.api.openai_parts import new_id, prompt_details
from lightvl.api.openai_request import chat_request, check_model
from lightvl.api.openai_rules import check_supported, renamed
from lightvl.api.openai_schema import ChatBody
from lightvl.api.responses_input import NAMES, chat_body, check_responses, wants_logprobs
from lightvl.api.responses_output import Json, OutputItems
from lightvl.api.responses_schema import ResponsesBody
from lightvl.api.timings import usage_details
from lightvl.api.tools import may_call
from lightvl.errors import RequestError


async def responses(exchange: Exchange) -> None:
    """`POST /v1/responses`."""
    body = await exchange.read(ResponsesBody)
    check_model(exchange.front, body.model)
    check_responses(body)
    chat = chat_body(body)
    request = _request(exchange, chat)
    generation = await exchange.generate(request, streaming=bool(body.stream))
    response = _Response(exchange.front, body, chat, generation)
    if body.stream:
        await exchange.stream(
            generation,
            response.encode,
            head=response.head(),
            tail=response.tail,
            failed=response.failed,
        )
        return
    await generation.finished()
    await exchange.reply(response.whole(), [generation])


def _request(exchange: Exchange, chat: ChatBody) -> GenerationRequest:
    """Returns the request of a chat completion; errors speak of this route's fields."""
    try:
        check_supported(chat)
        request = chat_request(exchange, chat, prompt_field="input")
    except RequestError as error:
        raise renamed(error, NAMES) from None
    constraint = request.sampling.constraint
    if constraint is None or constraint.field not in NAMES:
        return request
    constraint = msgspec.structs.replace(constraint, field=NAMES[constraint.field])
    sampling = msgspec.structs.replace(request.sampling, constraint=constraint)
    return replace(request, sampling=sampling)


class _Response:
    """A response while it is made: the object itself and the events of its stream."""

    def __init__(
        self, front: Front, body: ResponsesBody, chat: ChatBody, generation: Generation
    ) -> None:
        self._generation = generation
        self._output = OutputItems(front, calls_tools=may_call(chat), logprobs=wants_logprobs(body))
        self._object = _begun(front, body, generation)
        self._encoder = msgspec.json.Encoder()
        self._num_events = 0

    def whole(self) -> Json:
        """Returns the response of an ended generation."""
        (sequence,) = self._generation.sequences
        events = sequence.events
        said = "".join(event.text for event in events)
        rest = sequence.text.removeprefix(said)  # what the end released without a token
        for event in events:
            self._output.push(msgspec.structs.replace(event, finish_reason=None))
        self._output.push(TokenEvent(0, -1, rest, None, None, sequence.finish_reason, 0))
        return self._ended()

    def head(self) -> bytes:
        """Returns what precedes the first token's events."""
        return b"".join(
            self._event({"type": f"response.{name}", "response": self._object})
            for name in ("created", "in_progress")
        )

    def encode(self, event: TokenEvent) -> bytes:
        """Returns a token's events."""
        return b"".join(self._event(told) for told in self._output.push(event))

    def tail(self) -> bytes:
        """Returns the last event."""
        ended = self._ended()
        ended["usage"] |= {"lightvl": usage_details(self._generation)}
        return self._event({"type": f"response.{ended['status']}", "response": ended})

    def failed(self, error: RequestError) -> bytes:
        """Returns the last event of a response that ends in an error."""
        told = {"code": "server_error", "message": error.message}
        failed = {**self._object, "status": "failed", "error": told, "output": self._output.items}
        return self._event({"type": "response.failed", "response": failed})

    def _ended(self) -> Json:
        reason = self._generation.sequences[0].finish_reason
        ended = {**self._object, "output": self._output.items, "usage": _usage(self._generation)}
        if reason == "stop":
            return ended | {"status": "completed", "completed_at": int(time.time())}
        details = {"reason": "max_output_tokens" if reason == "length" else None}
        return ended | {"status": "incomplete", "incomplete_details": details}

    def _event(self, told: Json) -> bytes:
        told["sequence_number"] = self._num_events
        self._num_events += 1
        return b"event: %b\ndata: %b\n\n" % (told["type"].encode(), self._encoder.encode(told))


def _begun(front: Front, body: ResponsesBody, generation: Generation) -> Json:
    """Returns the response before its first token: what was asked for, as it is understood."""
    sampling = generation.prepared.request.sampling
    asked: dict[str, Any] = msgspec.to_builtins(body)
    text = asked["text"] or {}
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": front.model_name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": sampling.temperature,
        "text": {"format": _present(text.get("format") or {"type": "text"}), "verbosity": "medium"},
        "tool_choice": asked["tool_choice"] or "auto",
        "tools": asked["tools"] or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _present(fields: Json) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


def _usage(generation: Generation) -> Json:
    num_output = sum(sequence.num_tokens for sequence in generation.sequences)
    return {
        "input_tokens": generation.num_prompt_tokens,
        "input_tokens_details": {"cache_write_tokens": 0, **prompt_details([generation])},
        "output_tokens": num_output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": generation.num_prompt_tokens + num_output,
    }
