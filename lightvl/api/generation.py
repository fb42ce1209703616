"""One request's generation: what is asked for, its sequences while they run, its result."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field

import msgspec

from lightvl.api.admission import Ticket
from lightvl.errors import RequestError
from lightvl.messages import Started, TokenOutput
from lightvl.multimodal.pool import ImageSource, LoadedImage, RequestMedia
from lightvl.tokenizer.stream import TextStream
from lightvl.types import FinishReason, ImageSlot, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How ids become text and when text ends a sequence.

    Attributes:
        skip_special_tokens: Special tokens stay invisible.
        add_special_tokens: The checkpoint's start token precedes a text prompt.
        print_eos_token: The end token is visible even where special ones are skipped.
        stop_strings: A sequence ends at the first of these.
        stop_ids: And behind any of these sequences of at least two ids.
        keep_stop: Whether a stop string belongs to the text.
    """

    skip_special_tokens: bool = True
    add_special_tokens: bool = True
    print_eos_token: bool = False
    stop_strings: tuple[str, ...] = ()
    stop_ids: tuple[tuple[int, ...], ...] = ()
    keep_stop: bool = True


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation rendered by the chat template; `marker` stands where pictures go."""

    text: str
    marker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A prompt with pictures and how to go on from it.

    Attributes:
        prompt: Text or ids with placeholders, or a rendered conversation.
        images: In order of the placeholders.
        sampling: `max_new_tokens` is cut to what fits.
        num_sequences: Sequence k draws with seed + k.
        max_tiles: Bound of a picture's tiles, or None for the checkpoint's.
        salt: Cache namespace; equal ones share prefixes and pictures.
        client: Who asks; clients that wait together get equal shares.
        timeout_s: The sequences are ended so long after `arrived_s`.
        arrived_s: When the request came, by the monotonic clock.
        prompt_field: What the client calls the prompt, for errors.
    """

    prompt: str | list[int] | ChatPrompt
    images: tuple[ImageSource, ...] = ()
    sampling: SamplingParams
    text: TextOptions = TextOptions()
    num_sequences: int = 1
    max_tiles: int | None = None
    priority: int = 0
    salt: bytes = b""
    client: bytes = b""
    timeout_s: float | None = None
    arrived_s: float = field(default_factory=time.monotonic)
    prompt_field: str = "prompt"

    @property
    def deadline_s(self) -> float | None:
        """When the sequences are ended, by the monotonic clock, or None."""
        return None if self.timeout_s is None else self.arrived_s + self.timeout_s


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready for the engine: pictures loaded, prompt expanded, output cut to fit.

    Attributes:
        held: What it holds in the arena, or None.
        loaded_s: When its pictures were there, by the monotonic clock.
    """

    request: GenerationRequest
    sampling: SamplingParams
    token_ids: list[int]
    slots: list[ImageSlot]
    images: list[LoadedImage]
    held: RequestMedia | None = None
    loaded_s: float = field(default_factory=time.monotonic)

    def release(self) -> None:
        """Frees what it holds."""
        if self.held is not None:
            self.held.release()


class TokenEvent(msgspec.Struct, frozen=True, gc=False):
    """One new token of a sequence.

    Attributes:
        index: Which sequence.
        token_id: -1 when the sequence ended without a token.
        text: What the token released, perhaps empty.
        num_tokens: Tokens so far, this one included.
    """

    index: int
    token_id: int
    text: str
    logprob: float | None
    top_logprobs: list[tuple[int, float]] | None
    finish_reason: FinishReason | None
    num_tokens: int


class Sequence:
    """One of a request's sequences.

    Args:
        index: Which of them.
        request_id: Its name on the wire.
        stream: Makes its text.
        shown_ids: Special tokens to show although others are hidden.
    """

    __slots__ = (
        "_shown_ids", "events", "finish_reason", "index", "last_s", "num_tokens", "request_id",
        "stream",
    )  # fmt: skip

    def __init__(
        self, index: int, request_id: int, stream: TextStream, shown_ids: frozenset[int]
    ) -> None:
        self.index = index
        self.request_id = request_id
        self.stream = stream
        self._shown_ids = shown_ids
        self.events: list[TokenEvent] = []
        self.num_tokens = 0
        self.last_s = 0.0
        self.finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """Everything released so far."""
        return self.stream.text

    def push(self, output: TokenOutput) -> TokenEvent:
        """Takes the engine's next token; a stop string may end the sequence here.

        Args:
            output: With `token_id` -1 when the sequence ended without one.
        """
        token_id, reason = output.token_id, output.finish_reason
        text = ""
        if token_id >= 0:
            self.num_tokens += 1
            shown = True if token_id in self._shown_ids else None
            text = self.stream.push(token_id, shown)
            if self.stream.stopped and reason != "abort":
                reason = "stop"
        if reason is not None:
            text += self.stream.finish()
            self.finish_reason = reason
        event = TokenEvent(
            self.index, token_id, text, output.logprob, output.top_logprobs, reason, self.num_tokens
        )
        if token_id >= 0:
            self.events.append(event)
        return event


class Generation:
    """A running request. Iterate `events` or await `finished`, and always `close` it.

    Args:
        prepared: What it was made from.
        close: Of the client, frees what it holds for the request.
        ticket: Its place in the queue, or None where nothing is counted.
        streaming: Whether `events` will be read; without it the reader wakes once, at the end.

    Attributes:
        sequences: In order of their index.
        cached_tokens: Prompt tokens that the prefix cache had, once started.
        cached_images: For each picture, whether it needed no tower run in this request.
        began_s: When its first bytes came, by the monotonic clock, as the other times are.
        prepared_s: When it was sent to the engine.
        started_s: When it was admitted, or None.
        decoded_s: When the last picture that it had to supply was decoded, or None.
        preprocessed_s: When the last picture that it waited for had become patches, or None.
        encoded_s: When the last picture that it waited for was through the tower, or None.
        first_token_s: When its first token came, or None.
        ended_s: When its last sequence ended, or None.
    """

    def __init__(
        self,
        prepared: Prepared,
        close: Callable[["Generation"], None],
        ticket: Ticket | None = None,
        streaming: bool = False,
    ) -> None:
        self.prepared = prepared
        self.sequences: list[Sequence] = []
        self.num_unfinished = prepared.request.num_sequences
        self.cached_tokens = 0
        self.cached_images = [False] * len(prepared.images)
        self.arrived_s = self.began_s = prepared.request.arrived_s
        self.prepared_s = time.monotonic()
        self.started_s: float | None = None
        self.decoded_s: float | None = None
        self.preprocessed_s: float | None = None
        self.encoded_s: float | None = None
        self.first_token_s: float | None = None
        self.ended_s: float | None = None
        self._ticket = ticket
        self._close = close
        self._timer: asyncio.TimerHandle | None = None
        self._error: RequestError | None = None
        self._streaming = streaming
        self._new: list[TokenEvent] = []
        self._waiter: asyncio.Future[None] | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt tokens, pictures included."""
        return len(self.prepared.token_ids)

    @property
    def num_image_tokens(self) -> int:
        """Of the prompt, those of pictures."""
        return sum(slot.num_tokens for slot in self.prepared.slots)

    @property
    def num_cached_image_tokens(self) -> int:
        """Tokens of pictures that needed no tower run in this request."""
        slots = zip(self.prepared.slots, self.cached_images, strict=True)
        return sum(slot.num_tokens for slot, cached in slots if cached)

    async def events(self) -> AsyncIterator[list[TokenEvent]]:
        """Yields all tokens that came since the last time, until every sequence has ended.

        Raises:
            RequestError: The request failed, or was closed from elsewhere.
        """
        while self._new or self._error is not None or self.num_unfinished:
            if self._error is not None:
                raise self._error
            if self._new:
                new, self._new = self._new, []
                yield new
            else:
                await self._wait()

    async def finished(self) -> None:
        """Waits until every sequence has ended.

        Raises:
            RequestError: The request failed, or was closed from elsewhere.
        """
        while self.num_unfinished and self._error is None:
            await self._wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends what still runs and frees everything held; may be called again."""
        if self._timer is not None:
            self._timer.cancel()
        if self._ticket is not None:
            self._ticket.leave()
        self._close(self)

    def fail(self, error: RequestError) -> None:
        """Ends the request with an error, which the reader gets."""
        if self._error is None and self.num_unfinished:
            self._error = error
            self.close()
            self._wake()

    def set_deadline(self, deadline_s: float) -> None:
        """Ends the sequences then with what they have; without a token, by an error.

        Args:
            deadline_s: By the monotonic clock.
        """
        rest_s = max(0.0, deadline_s - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(rest_s, self._expire)

    def started(self, message: Started) -> None:
        """One sequence's prefill begins; the first one counts for the request's usage."""
        if self.started_s is not None:
            return
        self.started_s = time.monotonic()
        self.cached_tokens = message.cached_tokens
        self.cached_images = list(message.cached_images)

    def begun(self, now_s: float) -> None:
        """The first token is there: the place in the queue is free."""
        self.first_token_s = self.first_token_s or now_s
        if self._ticket is not None:
            self._ticket.started()

    def decoded(self) -> None:
        """The engine was sent the pixels of one of the pictures."""
        if self.first_token_s is None:
            self.decoded_s = time.monotonic()

    def waits_for(self, keys: Collection[bytes]) -> bool:
        """Whether one of these pictures is waited for here."""
        if self.started_s is None or self.first_token_s is not None:
            return False
        slots = zip(self.prepared.slots, self.cached_images, strict=True)
        return any(slot.key in keys and not cached for slot, cached in slots)

    def take(self, event: TokenEvent) -> None:
        """Hands a new token to the reader; wakes it if it wants to see each."""
        if event.finish_reason is not None:
            self.num_unfinished -= 1
        if self._streaming:
            self._new.append(event)
            self._wake()
        elif self.num_unfinished == 0:
            self._wake()

    def _expire(self) -> None:
        if not any(sequence.num_tokens for sequence in self.sequences):
            self.fail(too_late())
            return
        unfinished = [s for s in self.sequences if s.finish_reason is None]
        self.close()
        for sequence in unfinished:
            self.take(sequence.push(TokenOutput(sequence.request_id, -1, "abort")))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter


def too_late() -> RequestError:
    """Returns the error of a request whose deadline passed before its first token."""
    message = "timeout_s: the deadline passed before the first token"
    return RequestError(message, 503, param="timeout_s", code="timeout")
