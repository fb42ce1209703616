"""The OpenAI routes: `/v1/chat/completions` and `/v1/completions`."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Listed
from typing import Any

import msgspec

from lightvl.api.exchange import Exchange
from lightvl.api.front import Front
from lightvl.api.generation import Generation, GenerationRequest, Sequence, TokenEvent
from lightvl.api.native import image_sources
from lightvl.api.openai_parts import chat_logprobs, new_id, text_logprobs, usage
from lightvl.api.openai_request import chat_request, check_model, openai_request
from lightvl.api.openai_rules import check_supported
from lightvl.api.openai_schema import ChatBody, CompletionBody, prompts_of
from lightvl.api.timings import usage_details
from lightvl.api.tools import ToolCall, ToolParser, may_call
from lightvl.errors import RequestError

DONE = b"data: [DONE]\n\n"


async def chat_completions(exchange: Exchange) -> None:
    """`POST /v1/chat/completions`."""
    body = await exchange.read(ChatBody)
    check_model(exchange.front, body.model)
    check_supported(body)
    request = chat_request(exchange, body)
    calls = may_call(body)
    if body.stream:
        await _stream(exchange, body, request, _ToolChunks if calls else _ChatChunks)
        return
    generation = await exchange.generate(request)
    await generation.finished()
    front = exchange.front
    choices = [
        {
            "index": s.index,
            **_said(s, calls),
            "logprobs": _chat_logprobs(front, s.events) if body.logprobs else None,
        }
        for s in generation.sequences
    ]
    await exchange.reply(_answer(front, "chat.completion", choices, [generation]), [generation])


async def completions(exchange: Exchange) -> None:
    """`POST /v1/completions`."""
    front, body = exchange.front, await exchange.read(CompletionBody)
    check_model(front, body.model)
    check_supported(body)
    prompts, images = prompts_of(body), image_sources(body.multimodal_params)
    if len(prompts) > 1 and (body.stream or images):
        what = "a stream" if body.stream else "a request with pictures"
        raise RequestError(f"prompt: {len(prompts)} prompts, {what} has one", param="prompt")
    requests = [openai_request(exchange, body, prompt, images, "prompt") for prompt in prompts]
    if body.stream:
        await _stream(exchange, body, requests[0], _TextChunks)
        return
    generations = []
    for request in requests:
        generations.append(await exchange.generate(request))
        await asyncio.sleep(0)  # others get their turn
    await asyncio.gather(*(generation.finished() for generation in generations))
    sequences = [s for generation in generations for s in generation.sequences]
    choices = [
        {
            "index": index,
            "text": s.text,
            "logprobs": text_logprobs(front, s.events) if body.logprobs is not None else None,
            "finish_reason": s.finish_reason,
        }
        for index, s in enumerate(sequences)
    ]
    await exchange.reply(_answer(front, "text_completion", choices, generations), generations)


class _Chunks(ABC):
    """Makes the events of a stream; subclasses know their route's shape."""

    kind = ""

    def __init__(
        self, front: Front, generation: Generation, body: ChatBody | CompletionBody
    ) -> None:
        self._front = front
        self._generation = generation
        self._wants_logprobs = body.logprobs is not None and body.logprobs is not False
        options = body.stream_options
        self._wants_usage = options is not None and bool(options.include_usage)
        self._base: dict[str, Any] = {
            "id": _new_id(self.kind),
            "object": self.kind,
            "created": int(time.time()),
            "model": front.model_name,
        }
        if self._wants_usage:
            self._base["usage"] = None
        self._encoder = msgspec.json.Encoder()

    def head(self) -> bytes:
        """Returns what precedes the first token's event."""
        return b""

    def encode(self, event: TokenEvent) -> bytes:
        """Returns a token's event; nothing while it shows nothing and ends nothing."""
        if not event.text and event.finish_reason is None and not self._wants_logprobs:
            return b""
        return self.chunk(self.choice(event))

    def tail(self) -> bytes:
        """Returns what follows the last token's event."""
        if not self._wants_usage:
            return DONE
        told = usage([self._generation]) | {"lightvl": usage_details(self._generation)}
        event = {**self._base, "choices": [], "usage": told}
        return b"data: " + self._encoder.encode(event) + b"\n\n" + DONE

    @abstractmethod
    def choice(self, event: TokenEvent) -> dict[str, object]:
        """Returns the choice that a token's event carries."""

    def chunk(self, choice: dict[str, object]) -> bytes:
        """Returns an event with one choice."""
        data = self._encoder.encode({**self._base, "choices": [choice]})
        return b"data: " + data + b"\n\n"


class _ChatChunks(_Chunks):
    kind = "chat.completion.chunk"

    def head(self) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return b"".join(
            self.chunk({"index": i, "delta": delta, "logprobs": None, "finish_reason": None})
            for i in range(self._generation.prepared.request.num_sequences)
        )

    def choice(self, event: TokenEvent) -> dict[str, object]:
        logprobs = None
        if self._wants_logprobs and event.token_id >= 0:
            logprobs = _chat_logprobs(self._front, [event])
        return {
            "index": event.index,
            "delta": {"content": event.text} if event.text else {},
            "logprobs": logprobs,
            "finish_reason": event.finish_reason,
        }


class _ToolChunks(_ChatChunks):
    def __init__(self, front: Front, generation: Generation, body: ChatBody) -> None:
        super().__init__(front, generation, body)
        self._parsers = [ToolParser() for _ in generation.sequences]

    def encode(self, event: TokenEvent) -> bytes:
        parser = self._parsers[event.index]
        first = parser.num_calls
        ended = event.finish_reason is not None
        text, calls = parser.push(event.text, last=ended)
        if not (text or calls or ended or self._wants_logprobs):
            return b""
        choice = self.choice(event)
        delta: dict[str, object] = {"content": text} if text else {}
        if calls:
            delta["tool_calls"] = [call.body(first + i) for i, call in enumerate(calls)]
        if parser.num_calls and event.finish_reason == "stop":
            choice["finish_reason"] = "tool_calls"
        return self.chunk({**choice, "delta": delta})


class _TextChunks(_Chunks):
    kind = "text_completion"

    def __init__(
        self, front: Front, generation: Generation, body: ChatBody | CompletionBody
    ) -> None:
        super().__init__(front, generation, body)
        self._offsets = [0] * generation.prepared.request.num_sequences

    def choice(self, event: TokenEvent) -> dict[str, object]:
        logprobs = None
        if self._wants_logprobs and event.token_id >= 0:
            logprobs = text_logprobs(self._front, [event], self._offsets[event.index])
        self._offsets[event.index] += len(event.text)
        return {
            "index": event.index,
            "text": event.text,
            "logprobs": logprobs,
            "finish_reason": event.finish_reason,
        }


def _said(sequence: Sequence, calls_tools: bool) -> dict[str, object]:
    """Returns the message and the finish reason of a whole answer."""
    text, reason = sequence.text, sequence.finish_reason
    calls: list[ToolCall] = []
    if calls_tools:
        text, calls = ToolParser().push(text, last=True)
    message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message["content"] = text or None
        message["tool_calls"] = [call.body() for call in calls]
    finish = "tool_calls" if calls and reason == "stop" else reason
    return {"message": message, "finish_reason": finish}


async def _stream(
    exchange: Exchange,
    body: ChatBody | CompletionBody,
    request: GenerationRequest,
    kind: Callable[[Front, Generation, Any], _Chunks],
) -> None:
    generation = await exchange.generate(request, streaming=True)
    chunks = kind(exchange.front, generation, body)
    await exchange.stream(generation, chunks.encode, head=chunks.head(), tail=chunks.tail)


def _answer(
    front: Front, kind: str, choices: list[dict[str, Any]], generations: Listed[Generation]
) -> dict[str, object]:
    return {
        "id": _new_id(kind),
        "object": kind,
        "created": int(time.time()),
        "model": front.model_name,
        "choices": choices,
        "usage": usage(generations),
    }


def _new_id(kind: str) -> str:
    return new_id("chatcmpl-" if kind.startswith("chat") else "cmpl-")


def _chat_logprobs(front: Front, events: Listed[TokenEvent]) -> dict[str, object]:
    return {"content": chat_logprobs(front, events), "refusal": None}
