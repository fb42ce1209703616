"""From a body's fields to what the engine samples by and how text ends."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from lightvl.api.constraint import native_constraint, openai_constraint
from lightvl.api.generation import TextOptions
from lightvl.api.openai_schema import ChatBody, CompletionBody
from lightvl.api.prepare import random_seed
from lightvl.api.schema import NativeParameters
from lightvl.api.tools import tool_constraint
from lightvl.errors import RequestError
from lightvl.grid import MAX_TILES
from lightvl.tokenizer.tokenizer import Tokenizer
from lightvl.types import SamplingParams

Number = float | int | bool
Defaults = Mapping[str, Number]
"""What the checkpoint's `generation_config.json` sets, by its own names."""

UNLIMITED = 1 << 30
"""Tokens asked for when the client names no limit: what fits."""

_MOST_TEMPERATURE = 1e4
_PENALTY_RANGE = (1e-4, 1e4)


class _SharedFields(Protocol):
    """Sampling fields that the native and the OpenAI bodies have in common."""

    @property
    def temperature(self) -> float | None: ...
    @property
    def top_k(self) -> int | None: ...
    @property
    def top_p(self) -> float | None: ...
    @property
    def min_p(self) -> float | None: ...
    @property
    def repetition_penalty(self) -> float | None: ...
    @property
    def presence_penalty(self) -> float | None: ...
    @property
    def frequency_penalty(self) -> float | None: ...
    @property
    def ignore_eos(self) -> bool | None: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def logit_bias(self) -> dict[int, float] | None: ...


def native_sampling(
    p: NativeParameters, defaults: Defaults, vocab_size: int, *, wants_logprobs: bool
) -> SamplingParams:
    """Returns the sampling of a native request; see `text_options` for its stop sequences.

    Raises:
        RequestError: A combination that no single field's range excludes; names the field.
    """
    n = p.n or p.best_of or 1
    if p.best_of is not None and p.best_of != n:
        raise RequestError(f"best_of: {p.best_of}, expected n = {n}", param="best_of")
    max_new = _pick(p.max_new_tokens, defaults, "max_new_tokens", 16)
    min_new = p.min_new_tokens or 1
    if min_new > max_new:
        raise RequestError(
            f"min_new_tokens: {min_new}, expected at most max_new_tokens = {int(max_new)}",
            param="min_new_tokens",
        )
    sampled = bool(_pick(p.do_sample, defaults, "do_sample", False))
    return _sampling(
        p,
        defaults,
        vocab_size,
        greedy=not sampled,
        input_penalty=bool(p.input_penalty),
        max_new_tokens=int(min(max_new, UNLIMITED)),
        min_new_tokens=int(min(min_new, UNLIMITED)),
        allowed_token_ids=_allowed(p.allowed_token_ids, vocab_size),
        constraint=native_constraint(p),
        num_logprobs=0 if wants_logprobs else -1,
    )


def openai_sampling(
    body: ChatBody | CompletionBody, defaults: Defaults, vocab_size: int
) -> SamplingParams:
    """Returns the sampling of an OpenAI request.

    A checkpoint whose defaults say `do_sample: false` is greedy unless a temperature is given.

    Raises:
        RequestError: A token id of `logit_bias` is out of range, or `response_format` is bad.
    """
    if isinstance(body, ChatBody):
        max_new = body.max_completion_tokens or body.max_tokens or UNLIMITED
        num_logprobs = (body.top_logprobs or 0) if body.logprobs else -1
        constraint = tool_constraint(body) or openai_constraint(body.response_format)
    else:
        max_new = body.max_tokens or 16
        num_logprobs = body.logprobs if body.logprobs is not None else -1
        constraint = openai_constraint(body.response_format)
    return _sampling(
        body,
        defaults,
        vocab_size,
        greedy=body.temperature is None and defaults.get("do_sample") is False,
        max_new_tokens=min(max_new, UNLIMITED),
        constraint=constraint,
        num_logprobs=num_logprobs,
    )


def native_text_options(p: NativeParameters, tokenizer: Tokenizer) -> tuple[TextOptions, list[int]]:
    """Returns a native request's text rules and its further single stop ids."""
    stops = p.stop_sequences
    listed = [stops] if isinstance(stops, str) else stops or []
    texts, sequences, ids = _split_stops(listed, tokenizer, "stop_sequences")
    options = TextOptions(
        skip_special_tokens=p.skip_special_tokens is not False,
        add_special_tokens=p.add_special_tokens is not False,
        print_eos_token=bool(p.print_eos_token),
        stop_strings=tuple(texts),
        stop_ids=tuple(sequences),
    )
    return options, ids


def openai_text_options(
    stop: str | list[str] | None, tokenizer: Tokenizer
) -> tuple[TextOptions, list[int]]:
    """Returns an OpenAI request's text rules and its further single stop ids."""
    listed = [stop] if isinstance(stop, str) else stop or []
    texts, sequences, ids = _split_stops(listed, tokenizer, "stop")
    options = TextOptions(stop_strings=tuple(texts), stop_ids=tuple(sequences), keep_stop=False)
    return options, ids


def max_tiles(p: NativeParameters) -> int | None:
    """Returns `image_max_patch_num` as a bound, -1 being none.

    Raises:
        RequestError: It is out of range.
    """
    asked = p.image_max_patch_num
    if asked is not None and asked > MAX_TILES:
        raise RequestError(
            f"image_max_patch_num: {asked}, expected -1 or 0 to {MAX_TILES}",
            param="image_max_patch_num",
        )
    return None if asked in (None, -1) else asked


def _sampling(
    fields: _SharedFields, defaults: Defaults, vocab_size: int, *, greedy: bool, **others: object
) -> SamplingParams:
    temperature = float(_pick(fields.temperature, defaults, "temperature", 1.0))
    top_k = int(_pick(fields.top_k, defaults, "top_k", -1))
    if fields.top_k == 0:
        raise RequestError("top_k: 0, expected -1 or at least 1", param="top_k")
    penalty = float(_pick(fields.repetition_penalty, defaults, "repetition_penalty", 1.0))
    low, high = _PENALTY_RANGE
    return SamplingParams(
        temperature=0.0 if greedy else min(temperature, _MOST_TEMPERATURE),
        top_k=min(top_k, vocab_size) if top_k > 0 else -1,
        top_p=float(_pick(fields.top_p, defaults, "top_p", 1.0)),
        min_p=float(_pick(fields.min_p, defaults, "min_p", 0.0)),
        repetition_penalty=min(max(penalty, low), high),
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        ignore_eos=bool(fields.ignore_eos),
        seed=fields.seed if fields.seed is not None else random_seed(),
        logit_bias=_bias(fields.logit_bias, vocab_size),
        **others,  # type: ignore[arg-type]
    )


def _pick(value: Number | None, defaults: Defaults, name: str, otherwise: Number) -> Number:
    return value if value is not None else defaults.get(name, otherwise)


def _bias(bias: dict[int, float] | None, vocab_size: int) -> dict[int, float]:
    _check_ids(bias or (), vocab_size, "logit_bias")
    return bias or {}


def _allowed(ids: list[int] | None, vocab_size: int) -> tuple[int, ...] | None:
    _check_ids(ids or (), vocab_size, "allowed_token_ids")
    return tuple(sorted(set(ids))) if ids is not None else None


def _check_ids(ids: Iterable[int], vocab_size: int, name: str) -> None:
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise RequestError(
                f"{name}: {token_id} is no token id, expected 0 to {vocab_size - 1}", param=name
            )


def _split_stops(
    stops: Iterable[str | list[int]], tokenizer: Tokenizer, name: str
) -> tuple[list[str], list[tuple[int, ...]], list[int]]:
    """Sorts stop sequences into strings, sequences of several ids, and single ids.

    A special token, also with one space before it, is meant as its id. A string that contains a
    special token is matched by its ids too, since its text may be invisible.
    """
    texts: list[str] = []
    sequences: list[tuple[int, ...]] = []
    for stop in stops:
        if not stop:
            raise RequestError(f"{name}: an empty stop sequence", param=name)
        if not isinstance(stop, str):
            _check_ids(stop, tokenizer.vocab_size, name)
            sequences.append(tuple(stop))
            continue
        special = tokenizer.special_id(stop.removeprefix(" "))
        if special is not None:
            sequences.append((special,))
            continue
        texts.append(stop)
        ids = tuple(tokenizer.encode(stop, add_special_tokens=False))
        if tokenizer.special_ids.intersection(ids):
            sequences.append(ids)
    singles = [ids[0] for ids in sequences if len(ids) == 1]
    return texts, [ids for ids in sequences if len(ids) > 1], singles
