"""Offline use: the server's engine behind plain Python calls, without HTTP."""

import asyncio
import base64
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from lightvl.api.chat import render_chat
from lightvl.api.generation import ChatPrompt, Generation, GenerationRequest, TextOptions
from lightvl.api.openai_schema import ChatMessage
from lightvl.errors import RequestError
from lightvl.flags import make_config
from lightvl.launch import RunningEngine, start_engine
from lightvl.multimodal.pool import ImageSource
from lightvl.types import FinishReason, SamplingParams

Picture = str | Path | bytes
"""A picture: an http(s) or data URL, a file's path, or a file's content."""

Prompt = str | list[int]
T = TypeVar("T")


class Completion(msgspec.Struct, frozen=True):
    """One generated sequence.

    Attributes:
        text: Without special tokens; ends before a stop string.
        token_ids: As drawn, the end token included.
        finish_reason: `stop` or `length`.
        logprobs: Of each drawn id, when `num_logprobs` asks for them.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[float] | None


class GenerationOutput(msgspec.Struct, frozen=True):
    """What one prompt gave.

    Attributes:
        completions: As many as `n`.
        num_prompt_tokens: Pictures included.
        num_cached_tokens: Of these, how many the prefix cache had.
    """

    completions: list[Completion]
    num_prompt_tokens: int
    num_cached_tokens: int

    @property
    def text(self) -> str:
        """The first completion's text."""
        return self.completions[0].text


class LLM:
    """A loaded model; generates for many prompts at once with continuous batching.

    The engine and the picture decoders run in child processes, as in the server. Use it as a
    context manager or call `close`; the processes also end with this one.

    Args:
        model_dir: A checkpoint; the bundled demo model when absent.
        options: The server's flags by name, such as `cache_capacity=500`.

    Raises:
        StartupError: An option is bad or the model can't be loaded.
    """

    def __init__(self, model_dir: str | Path | None = None, **options: object) -> None:
        if model_dir is not None:
            options["model_dir"] = str(model_dir)
        config = make_config(**options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._engine: RunningEngine = self._run(start_engine(config))
        except BaseException:
            self._stop_loop()
            raise

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | None = None,
        *,
        images: Sequence[Sequence[Picture]] | Sequence[Picture] = (),
        n: int = 1,
        stop: Sequence[str] = (),
    ) -> list[GenerationOutput]:
        """Completes raw prompts.

        Args:
            prompts: Text or ids, one or several; `<image>` stands where a picture goes.
            sampling: For all prompts; greedy with 16 tokens when absent.
            images: The pictures of a single prompt, or one list for each prompt.
            n: Sequences per prompt; sequence k draws with seed + k.
            stop: A text ends before the first of these.

        Returns:
            One output per prompt, in order.

        Raises:
            RequestError: A prompt or picture is bad; nothing is generated then.
        """
        single = isinstance(prompts, str) or all(isinstance(item, int) for item in prompts)
        listed: list[Any] = [prompts] if single else list(prompts)
        pictures: list[Any] = [images] if single else list(images) or [()] * len(listed)
        if len(pictures) != len(listed):
            raise RequestError(f"images: {len(pictures)} lists for {len(listed)} prompts")
        requests = [
            self._request(prompt, tuple(map(image_source, shown)), sampling, n, stop)
            for prompt, shown in zip(listed, pictures, strict=True)
        ]
        return self._run(self._generate(requests))

    def chat(
        self,
        messages: Sequence[dict[str, Any]],
        sampling: SamplingParams | None = None,
        *,
        n: int = 1,
        stop: Sequence[str] = (),
    ) -> GenerationOutput:
        """Answers a conversation through the checkpoint's chat template.

        Args:
            messages: As the OpenAI API has them: `role` and `content`, which is text or a list of
                `text` and `image_url` parts. A URL may also be a file's path here.
            sampling: Greedy with 16 tokens when absent.
            n: Sequences; sequence k draws with seed + k.
            stop: The text ends before the first of these.

        Raises:
            RequestError: A message or picture is bad.
        """
        try:
            turns = msgspec.convert(list(messages), list[ChatMessage])
        except msgspec.ValidationError as error:
            raise RequestError(f"messages: {error}", param="messages") from None
        prompt, sources = render_chat(self._engine.tokenizer, turns)
        shown = tuple(
            replace(image_source(source.data), max_tiles=source.max_tiles) for source in sources
        )
        return self._run(self._generate([self._request(prompt, shown, sampling, n, stop)]))[0]

    def close(self) -> None:
        """Ends the engine; the object can't be used afterwards."""
        if self._loop.is_running():
            self._run(self._engine.close())
            self._stop_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _request(
        self,
        prompt: Prompt | ChatPrompt,
        images: tuple[ImageSource, ...],
        sampling: SamplingParams | None,
        n: int,
        stop: Sequence[str],
    ) -> GenerationRequest:
        if n < 1:
            raise RequestError(f"n: {n}, expected at least 1", param="n")
        return GenerationRequest(
            prompt=prompt,
            images=images,
            sampling=sampling or SamplingParams(temperature=0.0),
            text=TextOptions(stop_strings=tuple(stop), keep_stop=False),
            num_sequences=n,
        )

    async def _generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationOutput]:
        client = self._engine.client
        generations: list[Generation] = []
        try:
            for request in requests:
                generations.append(client.start(await client.prepare(request)))
            await asyncio.gather(*(generation.finished() for generation in generations))
            return [_output(generation) for generation in generations]
        finally:
            for generation in generations:
                generation.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def image_source(picture: Picture) -> ImageSource:
    """Returns what the media pool loads for a picture given from Python.

    Raises:
        RequestError: It is a path that can't be read.
    """
    if isinstance(picture, str) and picture.startswith(("http://", "https://", "data:")):
        return ImageSource("url", picture)
    if isinstance(picture, bytes):
        return ImageSource("base64", base64.b64encode(picture).decode())
    try:
        content = Path(picture).read_bytes()
    except OSError as error:
        raise RequestError(f"{picture}: {error.strerror or error}") from None
    return ImageSource("base64", base64.b64encode(content).decode())


def _output(generation: Generation) -> GenerationOutput:
    completions = []
    for sequence in generation.sequences:
        logprobs = [e.logprob for e in sequence.events if e.logprob is not None]
        completions.append(
            Completion(
                text=sequence.text,
                token_ids=[event.token_id for event in sequence.events],
                finish_reason=sequence.finish_reason or "abort",
                logprobs=logprobs or None,
            )
        )
    return GenerationOutput(completions, generation.num_prompt_tokens, generation.cached_tokens)
