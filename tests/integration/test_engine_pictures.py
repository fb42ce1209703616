"""Pictures in the engine: encoded once, evicted and encoded again, given back at every end."""

from pathlib import Path

import pytest

from lightvl.engine.engine import Engine
from lightvl.messages import Pixels
from lightvl.testing.checkpoints import write_checkpoint
from tests.integration.engine_driver import (
    Driver,
    Prompt,
    greedy,
    picture,
    picture_prompt,
    words,
)

NUM_TOKENS = 12
WIDE = picture(2, 400, 120)
"""Cut into ten tiles or more, so that it takes several tower batches while others stream."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), seed=3)


def stats(driver: Driver) -> dict[str, float]:
    return driver.engine.stats()


def test_a_picture_of_ten_requests_is_asked_for_and_encoded_once(checkpoint: Path) -> None:
    driver = Driver(checkpoint)
    prompts: list[Prompt] = [[*words(3 + i, i), *picture_prompt(WIDE)] for i in range(10)]
    together = driver.generate(*prompts, sampling=greedy(NUM_TOKENS))
    assert driver.num_asked == 1
    num_tiles = stats(driver)["vision_tiles_total"]
    assert num_tiles >= 7
    driver.check_nothing_is_held()
    alone = [driver.generate(prompt, sampling=greedy(NUM_TOKENS))[0] for prompt in prompts[:2]]
    assert together[:2] == alone
    assert stats(driver)["vision_tiles_total"] == 2 * num_tiles


def test_an_evicted_picture_is_encoded_again_to_the_same_effect(checkpoint: Path) -> None:
    driver = Driver(checkpoint, cache_capacity=1, prefix_cache=False)
    first, other = picture_prompt(picture(1, 50, 50)), picture_prompt(picture(3, 64, 64))
    answers = [driver.generate(p, sampling=greedy(NUM_TOKENS))[0] for p in (first, other, first)]
    assert answers[0] == answers[2]
    assert answers[0] != answers[1]
    assert driver.num_asked == 3
    assert stats(driver)["image_cache_evictions_total"] == 2


def test_prefix_hits_need_no_embeddings(checkpoint: Path) -> None:
    driver = Driver(checkpoint, cache_capacity=1)
    first: Prompt = [*picture_prompt(picture(1, 50, 50)), *words(20)]
    answer = driver.generate(first, sampling=greedy(NUM_TOKENS))
    driver.generate(picture_prompt(picture(3, 64, 64)), sampling=greedy(NUM_TOKENS))
    assert driver.generate(first, sampling=greedy(NUM_TOKENS)) == answer
    assert driver.num_asked == 2


def test_equal_prompts_with_other_pictures_share_nothing(checkpoint: Path) -> None:
    driver = Driver(checkpoint)
    prompts = [[*picture_prompt(picture(seed, 64, 64)), *words(20)] for seed in (3, 4)]
    answers = [driver.generate(p, sampling=greedy(NUM_TOKENS))[0] for p in prompts]
    assert answers[0] != answers[1]
    assert stats(driver)["prefix_cache_hits_total"] == 0


class Bystander:
    """A driver with a stream that runs while something else is aborted."""

    def __init__(self, checkpoint: Path, **changes: object) -> None:
        self.driver = Driver(checkpoint, **changes)
        self.expected = Driver(checkpoint).generate(words(30), sampling=greedy(40))[0]
        self.request = self.driver.add(words(30), greedy(40))
        while not self.driver.answers[self.request].ids:
            self.driver.step()

    def check(self, aborted: int) -> None:
        """Checks that the stream got its text, the aborted one nothing more, and all is free."""
        num_outputs = len(self.driver.answers[aborted].outputs)
        self.driver.run()
        assert self.driver.answers[self.request].ids == self.expected
        assert len(self.driver.answers[aborted].outputs) == num_outputs
        assert self.driver.answers[aborted].finish_reason is None
        self.driver.check_nothing_is_held()


def test_abort_before_the_pixels_come(checkpoint: Path) -> None:
    bystander = Bystander(checkpoint)
    driver = bystander.driver
    request = driver.add(picture_prompt(WIDE), greedy(NUM_TOKENS))
    driver.engine.step()
    assert [need.request_id for need in driver.needs] == [request]
    driver.abort(request)
    bystander.check(request)


def test_abort_amid_the_tiles_of_a_picture(checkpoint: Path) -> None:
    bystander = Bystander(checkpoint)
    driver = bystander.driver
    request = driver.add(picture_prompt(WIDE), greedy(NUM_TOKENS))
    while not driver.runner.num_pending_pictures:
        driver.step()
    assert not driver.answers[request].outputs
    driver.abort(request)
    bystander.check(request)


def test_abort_amid_the_prefill(checkpoint: Path) -> None:
    bystander = Bystander(checkpoint, chunked_prefill_size=16)
    driver = bystander.driver
    request = driver.add([*words(50), *picture_prompt(WIDE)], greedy(NUM_TOKENS))
    for _ in range(3):
        driver.step()
    assert driver.answers[request].started
    assert not driver.answers[request].outputs
    driver.abort(request)
    bystander.check(request)


def test_abort_amid_the_decoding(checkpoint: Path) -> None:
    bystander = Bystander(checkpoint)
    driver = bystander.driver
    request = driver.add(picture_prompt(WIDE), greedy(30))
    while len(driver.answers[request].outputs) < 5:
        driver.step()
    driver.abort(request)
    bystander.check(request)


def test_another_request_supplies_the_picture_of_an_aborted_one(checkpoint: Path) -> None:
    driver = Driver(checkpoint)
    first = driver.add(picture_prompt(WIDE), greedy(NUM_TOKENS))
    second = driver.add(picture_prompt(WIDE), greedy(NUM_TOKENS))
    driver.engine.step()
    assert [need.request_id for need in driver.needs] == [first]
    driver.needs.clear()
    driver.abort(first)
    driver.run()
    expected = Driver(checkpoint).generate(picture_prompt(WIDE), sampling=greedy(NUM_TOKENS))
    assert [driver.answers[second].ids] == expected
    assert not driver.answers[first].outputs
    driver.check_nothing_is_held()


def test_pixels_are_read_once(checkpoint: Path) -> None:
    """The driver clears a picture's pixels when they are given back."""
    streaming = Bystander(checkpoint).driver
    request = streaming.add(picture_prompt(WIDE), greedy(NUM_TOKENS))
    while not streaming.runner.num_pending_pictures:
        streaming.step()
    assert not streaming.regions, "given back after the first tower batch"
    assert not any(streaming.arena)
    streaming.run()
    expected = Driver(checkpoint).generate(picture_prompt(WIDE), sampling=greedy(NUM_TOKENS))
    assert [streaming.answers[request].ids] == expected


def test_pixels_that_nobody_waits_for_are_given_back(checkpoint: Path) -> None:
    driver = Driver(checkpoint)
    engine: Engine = driver.engine
    driver.regions[0] = picture(1, 50, 50)
    engine.handle(Pixels(picture(1, 50, 50).key, 0, 50, 50))
    engine.step()
    assert not driver.regions
