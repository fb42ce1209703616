"""Greedy text of the whole engine equals transformers', token for token, however it is served."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from lightvl.config import Layout, TextFamily
from lightvl.testing.checkpoints import write_checkpoint
from tests.integration.engine_driver import (
    Driver,
    Prompt,
    greedy,
    picture,
    picture_prompt,
    reference_ids,
    words,
)

NUM_TOKENS = 24

CASES: list[tuple[TextFamily, Layout]] = [
    ("qwen2", "original"),
    ("qwen2", "native"),
    ("qwen3", "original"),
    ("qwen3", "native"),
    ("llama", "original"),
    ("llama", "native"),
    ("internlm2", "original"),
]

PROMPTS: dict[str, Prompt] = {
    "text": words(37),
    "one tile": picture_prompt(picture(1, 50, 50)),
    "tiles and thumbnail": picture_prompt(picture(2, 200, 90)),
    "several pictures": picture_prompt(
        picture(3, 64, 64), picture(2, 200, 90), picture(4, 90, 160), seed=7
    ),
    "a picture twice": picture_prompt(picture(1, 50, 50), picture(1, 50, 50), seed=9),
}


class Case(NamedTuple):
    """A checkpoint and what transformers answers to `PROMPTS`."""

    path: Path
    expected: list[list[int]]


class Checkpoints:
    """Writes checkpoints and asks the reference when they are first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.case = cache(self._case)
        self._write = cache(self._write_once)

    def _case(self, family: TextFamily, layout: Layout) -> Case:
        native = self._write("llama" if family == "internlm2" else family, "native")
        expected = [reference_ids(native, prompt, NUM_TOKENS) for prompt in PROMPTS.values()]
        return Case(self._write(family, layout), expected)

    def _write_once(self, family: TextFamily, layout: Layout) -> Path:
        path = self._folder / f"{family}-{layout}"
        return write_checkpoint(path, family=family, layout=layout, seed=3)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> Case:
    return checkpoints.case(*request.param)


@pytest.fixture
def qwen(checkpoints: Checkpoints) -> Case:
    return checkpoints.case("qwen2", "original")


def test_the_reference_is_worth_comparing_with(case: Case) -> None:
    assert all(len(set(ids)) > 3 for ids in case.expected), "it repeats itself"
    assert len({tuple(ids) for ids in case.expected}) == len(PROMPTS)


def test_alone_batched_and_cached(case: Case) -> None:
    driver = Driver(case.path)
    sampling = greedy(NUM_TOKENS)
    alone = [driver.generate(prompt, sampling=sampling)[0] for prompt in PROMPTS.values()]
    assert alone == case.expected
    asked = driver.num_asked
    cached = driver.generate(*PROMPTS.values(), sampling=sampling)
    assert cached == case.expected
    assert driver.num_asked == asked, "a cached picture is asked for again"
    driver.flush()
    batched = driver.generate(*PROMPTS.values(), sampling=sampling)
    assert batched == case.expected
    driver.check_nothing_is_held()


@pytest.mark.parametrize("chunk", [1, 7, 33, None])
def test_chunked(case: Case, chunk: int | None) -> None:
    driver = Driver(case.path, chunked_prefill_size=chunk)
    assert driver.generate(*PROMPTS.values(), sampling=greedy(NUM_TOKENS)) == case.expected
    driver.check_nothing_is_held()


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_preempted(case: Case, prefix_cache: bool) -> None:
    num_preemptions = 0.0
    for num_pages in (9, 11, 15, 17):
        driver = Driver(case.path, max_total_token_num=num_pages * 16, prefix_cache=prefix_cache)
        assert driver.generate(*PROMPTS.values(), sampling=greedy(NUM_TOKENS)) == case.expected
        num_preemptions += driver.engine.stats()["preemptions_total"]
        driver.check_nothing_is_held()
    assert num_preemptions > 0


@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_page_sizes(qwen: Case, page_size: int) -> None:
    driver = Driver(qwen.path, page_size=page_size)
    for _ in range(2):
        assert driver.generate(*PROMPTS.values(), sampling=greedy(NUM_TOKENS)) == qwen.expected


@pytest.mark.parametrize(
    "changes",
    [
        {"visual_infer_batch_size": 1},
        {"cache_capacity": 3},
        {"running_max_req_size": 2},
        {"batch_max_tokens": 64, "chunked_prefill_size": 64},
    ],
    ids=str,
)
def test_tight_settings(qwen: Case, changes: dict[str, int]) -> None:
    driver = Driver(qwen.path, **changes)
    for _ in range(2):
        assert driver.generate(*PROMPTS.values(), sampling=greedy(NUM_TOKENS)) == qwen.expected
    driver.check_nothing_is_held()


def test_requests_that_arrive_while_others_stream(qwen: Case) -> None:
    driver = Driver(qwen.path, chunked_prefill_size=16)
    requests = []
    for prompt in PROMPTS.values():
        requests.append(driver.add(prompt, greedy(NUM_TOKENS)))
        for _ in range(3):
            driver.step()
    driver.run()
    assert [driver.answers[i].ids for i in requests] == qwen.expected


@pytest.mark.parametrize(
    "changes",
    [{}, {"chunked_prefill_size": 13}, {"max_total_token_num": 320, "prefix_cache": False}],
    ids=str,
)
def test_dynamic_ntk_beyond_the_original_context(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, int]
) -> None:
    path = tmp_path_factory.mktemp("dynamic")
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    write_checkpoint(
        path, family="llama", layout="native", seed=3, max_position=64, rope_scaling=scaling
    )
    prompts = [words(n) for n in (50, 90, 100, 130)]
    expected = []
    for prompt in prompts:
        reference_ids(path, words(3), 1)  # else its base stays that of the longest text so far
        expected.append(reference_ids(path, prompt, NUM_TOKENS))
    driver = Driver(path, max_req_total_len=256, **changes)
    for _ in range(2):
        assert driver.generate(*prompts, sampling=greedy(NUM_TOKENS)) == expected
