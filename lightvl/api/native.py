"""The native routes: `/generate`, `/generate_stream`, `POST /`, `/tokens`."""

import logging

import msgspec

from lightvl.api.exchange import Exchange
from lightvl.api.front import Front
from lightvl.api.generation import Generation, GenerationRequest, Sequence, TokenEvent
from lightvl.api.sampling import max_tiles, native_sampling, native_text_options
from lightvl.api.schema import (
    GenerateBody,
    ImageItem,
    MultimodalParams,
    NativeParameters,
    TokensBody,
    unknown_keys,
)
from lightvl.api.timings import image_details
from lightvl.errors import RequestError
from lightvl.multimodal.pool import ImageSource
from lightvl.types import SamplingParams

log = logging.getLogger(__name__)


class StreamToken(msgspec.Struct, frozen=True, gc=False):
    """`token` of a stream event."""

    id: int
    text: str
    logprob: float | None
    special: bool
    count_output_tokens: int
    prompt_tokens: int


class StreamEvent(msgspec.Struct, frozen=True, gc=False):
    """One event of `/generate_stream`."""

    token: StreamToken
    generated_text: str | None
    finished: bool
    finish_reason: str | None
    details: None = None


async def generate(exchange: Exchange) -> None:
    """`POST /generate`: the whole answer at once."""
    await _whole(exchange, await exchange.read(GenerateBody))


async def generate_stream(exchange: Exchange) -> None:
    """`POST /generate_stream`: one event for each token."""
    await _streamed(exchange, await exchange.read(GenerateBody))


async def root(exchange: Exchange) -> None:
    """`POST /`: the body's `stream` picks one of the two."""
    body = await exchange.read(GenerateBody)
    await (_streamed if body.stream else _whole)(exchange, body)


async def tokens(exchange: Exchange) -> None:
    """`/tokens`: how many tokens a prompt has, pictures included."""
    front, body = exchange.front, await exchange.read(TokensBody)
    _warn_unknown(exchange, TokensBody)
    parameters = body.parameters or NativeParameters()
    options, _ = native_text_options(parameters, front.tokenizer)
    request = GenerationRequest(
        prompt=body.text,
        prompt_field="text",
        sampling=SamplingParams(),
        text=options,
        max_tiles=max_tiles(parameters),
    )
    sizes = await _sizes(exchange, body.multimodal_params)
    pictures = front.client.preparer.pictures(sizes, request.max_tiles)
    token_ids, _ = await front.client.preparer.expand(request, pictures)
    await exchange.reply({"ntokens": len(token_ids)})


def image_sources(params: MultimodalParams | None) -> tuple[ImageSource, ...]:
    """Returns the pictures of a request.

    Raises:
        RequestError: One isn't a url or base64.
    """
    return tuple(_source(i, item) for i, item in enumerate(_items(params)))


async def _whole(exchange: Exchange, body: GenerateBody) -> None:
    parameters = body.parameters or NativeParameters()
    request = _request(exchange, body, parameters, wants_logprobs=bool(parameters.return_details))
    generation = await exchange.generate(request)
    await generation.finished()
    details = bool(parameters.return_details)
    await exchange.reply(_answer(exchange.front, generation, details), [generation])


async def _streamed(exchange: Exchange, body: GenerateBody) -> None:
    parameters = body.parameters or NativeParameters()
    request = _request(exchange, body, parameters, wants_logprobs=True)
    if request.num_sequences > 1:
        raise RequestError(f"n: {request.num_sequences}, a stream has n = 1", param="n")
    generation = await exchange.generate(request, streaming=True)
    special_ids = exchange.front.tokenizer.special_ids
    prompt_tokens = generation.num_prompt_tokens
    encoder = msgspec.json.Encoder()

    def encode(event: TokenEvent) -> bytes:
        finished = event.finish_reason is not None
        token = StreamToken(
            event.token_id, event.text, event.logprob, event.token_id in special_ids,
            event.num_tokens, prompt_tokens,
        )  # fmt: skip
        text = generation.sequences[0].text if finished else None
        data = encoder.encode(StreamEvent(token, text, finished, event.finish_reason))
        return b"data:" + data + b"\n\n"

    await exchange.stream(generation, encode)


def _request(
    exchange: Exchange, body: GenerateBody, parameters: NativeParameters, *, wants_logprobs: bool
) -> GenerationRequest:
    front = exchange.front
    _warn_unknown(exchange, GenerateBody)
    vocab_size = front.model.text.vocab_size
    if not isinstance(body.inputs, str):
        _check_input_ids(body.inputs, vocab_size)
    sampling = native_sampling(
        parameters, front.model.generation, vocab_size, wants_logprobs=wants_logprobs
    )
    options, stop_ids = native_text_options(parameters, front.tokenizer)
    return GenerationRequest(
        prompt=body.inputs,
        prompt_field="inputs",
        images=image_sources(body.multimodal_params),
        sampling=msgspec.structs.replace(sampling, stop_token_ids=tuple(stop_ids)),
        text=options,
        num_sequences=parameters.n or parameters.best_of or 1,
        max_tiles=max_tiles(parameters),
        salt=exchange.salt,
        client=exchange.client,
        timeout_s=shortest(parameters.timeout_s, front.config.request_timeout_s),
    )


def shortest(*timeouts_s: float | None) -> float | None:
    """Returns the smallest of the deadlines that are given, or None."""
    return min((t for t in timeouts_s if t is not None), default=None)


def _check_input_ids(ids: list[int], vocab_size: int) -> None:
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise RequestError(
                f"inputs: {token_id} is no token id, expected 0 to {vocab_size - 1}", param="inputs"
            )


def _warn_unknown(exchange: Exchange, kind: type[msgspec.Struct]) -> None:
    """Logs keys that no field answers to, each once in the server's life."""
    new = unknown_keys(exchange.body, kind) - exchange.front.warned_keys
    if new and len(exchange.front.warned_keys) < 1000:
        exchange.front.warned_keys |= new
        log.warning("unknown request keys are ignored: %s", ", ".join(sorted(map(repr, new))))


def _answer(front: Front, generation: Generation, details: bool) -> dict[str, object]:
    sequences = generation.sequences
    answer: dict[str, object] = {
        "generated_text": [s.text for s in sequences],
        "count_output_tokens": _one_or_all([s.num_tokens for s in sequences]),
        "finish_reason": _one_or_all([s.finish_reason for s in sequences]),
        "prompt_tokens": generation.num_prompt_tokens,
        "input_usage": {
            "input_text_tokens": generation.num_prompt_tokens - generation.num_image_tokens,
            "input_image_tokens": generation.num_image_tokens,
            "input_image_cached_tokens": generation.num_cached_image_tokens,
            "input_cached_tokens": generation.cached_tokens,
        },
    }
    if details:
        answer["tokens"] = _one_or_all([_token_details(front, s) for s in sequences])
        answer["images"] = image_details(generation)
    return answer


def _one_or_all(values: list[object]) -> object:
    return values[0] if len(values) == 1 else values


def _token_details(front: Front, sequence: Sequence) -> list[dict[str, object]]:
    special_ids = front.tokenizer.special_ids
    return [
        {
            "id": event.token_id,
            "text": event.text,
            "logprob": event.logprob,
            "special": event.token_id in special_ids,
        }
        for event in sequence.events
    ]


def _items(params: MultimodalParams | None) -> list[ImageItem]:
    return (params.images or []) if params is not None else []


def _source(index: int, item: ImageItem) -> ImageSource:
    if item.type == "image_size":
        raise RequestError(
            f"images[{index}].type: image_size is for /tokens, expected url or base64",
            param="images",
        )
    if not isinstance(item.data, str):
        raise RequestError(f"images[{index}].data: expected str", param="images")
    return ImageSource(item.type, item.data)


async def _sizes(exchange: Exchange, params: MultimodalParams | None) -> list[tuple[int, int]]:
    """Returns each picture's width and height, loading those that aren't given as a size."""
    items = _items(params)
    exchange.front.client.preparer.check_num_images(len(items))
    loaded = {i: _source(i, item) for i, item in enumerate(items) if item.type != "image_size"}
    images = await exchange.load(tuple(loaded.values()))
    found = {i: (image.width, image.height) for i, image in zip(loaded, images, strict=True)}
    return [found.get(i) or _given_size(i, item) for i, item in enumerate(items)]


def _given_size(index: int, item: ImageItem) -> tuple[int, int]:
    if isinstance(item.data, str) or len(item.data) != 2:
        raise RequestError(f"images[{index}].data: expected [width, height]", param="images")
    return item.data[0], item.data[1]
