"""From a body's fields to sampling parameters and text rules."""

from pathlib import Path
from typing import Any

import pytest

import lightvl
from lightvl.api.openai_schema import ChatBody, CompletionBody
from lightvl.api.sampling import (
    UNLIMITED,
    max_tiles,
    native_sampling,
    native_text_options,
    openai_sampling,
    openai_text_options,
)
from lightvl.api.schema import NativeParameters
from lightvl.errors import RequestError
from lightvl.tokenizer.tokenizer import Tokenizer, load_tokenizer
from lightvl.types import SamplingParams

VOCAB = 100
MODEL_DIR = Path(next(iter(lightvl.__path__)), "demo")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(MODEL_DIR, eos_ids=(0,))


def native(defaults: dict[str, Any] | None = None, **fields: Any) -> SamplingParams:
    parameters = NativeParameters(**fields)
    return native_sampling(parameters, defaults or {}, VOCAB, wants_logprobs=False)


def test_native_defaults() -> None:
    sampling = native(seed=3)
    assert sampling == SamplingParams(temperature=0.0, seed=3, max_new_tokens=16)


def test_unset_seeds_differ() -> None:
    assert native(do_sample=True).seed != native(do_sample=True).seed


def test_the_checkpoints_defaults_hold_where_nothing_is_said() -> None:
    defaults = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    sampling = native(defaults, top_k=5, do_sample=None)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.8, 5)
    assert native(defaults, do_sample=False).temperature == 0.0
    assert native({"max_new_tokens": 99}).max_new_tokens == 99


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"min_new_tokens": 17}, "min_new_tokens"),
        ({"min_new_tokens": 6, "max_new_tokens": 5}, "min_new_tokens"),
        ({"top_k": 0}, "top_k"),
        ({"logit_bias": {100: 1.0}}, "logit_bias"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
        ({"allowed_token_ids": [3, 100]}, "allowed_token_ids"),
        ({"regular_constraint": "a+", "guided_json": {}}, "guided_json"),
        ({"regular_constraint": "a+", "guided_grammar": "x"}, "guided_grammar"),
        ({"regular_constraint": "a+", "allowed_token_ids": [1]}, "allowed_token_ids"),
        ({"regular_constraint": ""}, "regular_constraint"),
        ({"regular_constraint": "a" * 65537}, "regular_constraint"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[" * 9999}, "guided_json"),
        ({"guided_json": "3"}, "guided_json"),
    ],
)
def test_native_combinations_that_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        native(**fields)
    assert refused.value.status == 400
    assert refused.value.param == param
    assert refused.value.message.startswith(param)


def test_best_of_alone_sets_n() -> None:
    assert native(best_of=3, seed=1) == native(seed=1)


def test_values_stay_within_what_single_precision_holds() -> None:
    sampling = native(do_sample=True, temperature=1e300, repetition_penalty=1e-300)
    assert sampling.temperature == 1e4
    assert sampling.repetition_penalty == 1e-4


def test_stop_sequences_are_sorted_by_kind(tokenizer: Tokenizer) -> None:
    end = tokenizer.special_id("<|im_end|>")
    assert end is not None
    parameters = NativeParameters(
        stop_sequences=["stop", " <|im_end|>", [5], [6, 7], "a<|im_end|>", " x"]
    )
    options, ids = native_text_options(parameters, tokenizer)
    assert options.stop_strings == ("stop", "a<|im_end|>", " x")
    assert ids == [end, 5]
    spelled = tuple(tokenizer.encode("a<|im_end|>", add_special_tokens=False))
    assert options.stop_ids == ((6, 7), spelled)
    assert options.keep_stop


@pytest.mark.parametrize("stop", ["", [""], [[]], ["a", ""]])
def test_empty_stop_sequences_are_refused(tokenizer: Tokenizer, stop: Any) -> None:
    with pytest.raises(RequestError, match=r"^stop_sequences: an empty stop sequence"):
        native_text_options(NativeParameters(stop_sequences=stop or [""]), tokenizer)


def test_openai_stop_text_is_not_kept(tokenizer: Tokenizer) -> None:
    options, ids = openai_text_options("END", tokenizer)
    assert (options.stop_strings, ids, options.keep_stop) == (("END",), [], False)


def chat(**fields: Any) -> ChatBody:
    return ChatBody(messages=[], **fields)


def test_openai_lengths() -> None:
    assert openai_sampling(chat(), {}, VOCAB).max_new_tokens == UNLIMITED
    assert openai_sampling(chat(max_tokens=5), {}, VOCAB).max_new_tokens == 5
    both = chat(max_tokens=5, max_completion_tokens=7)
    assert openai_sampling(both, {}, VOCAB).max_new_tokens == 7
    body = CompletionBody(prompt="a")
    assert openai_sampling(body, {"max_new_tokens": 99}, VOCAB).max_new_tokens == 16


def test_openai_temperature_comes_from_the_checkpoint_else_one() -> None:
    assert openai_sampling(chat(), {"temperature": 0.5}, VOCAB).temperature == 0.5
    assert openai_sampling(chat(), {}, VOCAB).temperature == 1.0
    assert openai_sampling(chat(temperature=0), {}, VOCAB).temperature == 0.0


def test_openai_logprobs() -> None:
    assert openai_sampling(chat(), {}, VOCAB).num_logprobs == -1
    assert openai_sampling(chat(logprobs=True), {}, VOCAB).num_logprobs == 0
    assert openai_sampling(chat(logprobs=True, top_logprobs=4), {}, VOCAB).num_logprobs == 4
    body = CompletionBody(prompt="a", logprobs=0)
    assert openai_sampling(body, {}, VOCAB).num_logprobs == 0


@pytest.mark.parametrize(("asked", "bound"), [(None, None), (-1, None), (0, 0), (12, 12)])
def test_bound_of_tiles(asked: int | None, bound: int | None) -> None:
    assert max_tiles(NativeParameters(image_max_patch_num=asked)) == bound


def test_a_greedy_checkpoint_stays_greedy_until_a_temperature_is_asked_for() -> None:
    def temperature(defaults: dict[str, Any], asked: float | None = None) -> float:
        body = CompletionBody(prompt="x", temperature=asked)
        return openai_sampling(body, defaults, VOCAB).temperature

    assert temperature({"do_sample": False}) == 0.0
    assert temperature({"do_sample": False}, 0.5) == 0.5
    assert temperature({"do_sample": True, "temperature": 0.7}) == 0.7
    assert temperature({"temperature": 0.7}) == 0.7
    assert temperature({}) == 1.0
