"""Sampling through the whole engine: seeds, logprobs, penalties and limits against references."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightvl.testing.checkpoints import write_checkpoint
from lightvl.types import SamplingParams
from tests.integration.engine_driver import (
    Driver,
    Prompt,
    greedy,
    oracle_inputs,
    picture,
    picture_prompt,
    words,
)
from tests.models.oracle import load_reference

NUM_TOKENS = 20
TEXT = words(37)
SHOWN = picture_prompt(picture(2, 200, 90))
CROWD: list[Prompt] = [words(21, seed=5), picture_prompt(picture(3, 64, 64), seed=7), words(50, 8)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    return write_checkpoint(path, family="qwen2", layout="native", seed=3)


def drawing(seed: int, **changes: object) -> SamplingParams:
    """Sampling with every filter on."""
    values: dict[str, object] = {
        "temperature": 3.0,
        "top_k": 50,
        "top_p": 0.95,
        "min_p": 0.01,
        "seed": seed,
        "max_new_tokens": NUM_TOKENS,
        "ignore_eos": True,
    }
    return SamplingParams(**(values | changes))  # type: ignore[arg-type]


def reference_logits(driver: Driver, prompt: Prompt, continuation: list[int]) -> Tensor:
    """Returns transformers' logits [n, V] before each token of the continuation, in float64."""
    tiling = driver.config.model.tiling
    assert tiling is not None
    inputs = oracle_inputs(prompt, tiling)
    ids = torch.cat([inputs["input_ids"], torch.tensor([continuation], dtype=torch.int64)], 1)
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        logits: Tensor = load_reference(Path(driver.config.model_dir))(**inputs).logits[0]
    start = ids.shape[1] - len(continuation) - 1
    return logits[start:].double()


@pytest.mark.parametrize("prompt", [TEXT, SHOWN], ids=["text", "picture"])
def test_a_seed_draws_the_same_however_it_is_served(checkpoint: Path, prompt: Prompt) -> None:
    first = Driver(checkpoint)
    alone = first.generate(prompt, sampling=drawing(1))[0]
    assert len(set(alone)) > 5
    assert first.generate(prompt, sampling=drawing(1))[0] == alone, "cached"
    assert first.generate(prompt, sampling=drawing(2))[0] != alone
    batched = Driver(checkpoint, chunked_prefill_size=13)
    for i, other in enumerate(CROWD):
        batched.add(other, drawing(30 + i, max_new_tokens=9 + 8 * i))
        batched.step()
    assert batched.generate(prompt, sampling=drawing(1))[0] == alone, "batched"
    batched.check_nothing_is_held()


def test_a_seed_draws_the_same_when_preempted(checkpoint: Path) -> None:
    sampling = drawing(4, frequency_penalty=0.7, min_new_tokens=5)
    prompts = [TEXT, words(33, 2), words(35, 3)]
    roomy = Driver(checkpoint)
    alone = [roomy.generate(prompt, sampling=sampling)[0] for prompt in prompts]
    num_preemptions = 0.0
    for num_pages in range(6, 12):
        tight = Driver(checkpoint, max_total_token_num=num_pages * 16)
        assert tight.generate(*prompts, sampling=sampling) == alone
        num_preemptions += tight.engine.stats()["preemptions_total"]
    assert num_preemptions > 0


def test_n_sequences_equal_n_single_runs(checkpoint: Path) -> None:
    driver = Driver(checkpoint)
    single = [driver.generate(SHOWN, sampling=drawing(9 + i))[0] for i in range(4)]
    driver.flush()
    requests = [driver.add(SHOWN, drawing(9 + i)) for i in range(4)]
    driver.run()
    together = [driver.answers[i].ids for i in requests]
    assert together == single
    assert len({tuple(ids) for ids in together}) == 4
    started = [driver.answers[i].started for i in requests]
    assert [s is not None and all(s.cached_images) for s in started] == [False, True, True, True]


@pytest.mark.parametrize("prompt", [TEXT, SHOWN], ids=["text", "picture"])
def test_logprobs_equal_transformers(checkpoint: Path, prompt: Prompt) -> None:
    driver = Driver(checkpoint)
    driver.add(CROWD[0], greedy(NUM_TOKENS))
    request = driver.add(prompt, drawing(3, num_logprobs=5))
    driver.run()
    outputs = driver.answers[request].outputs
    expected = reference_logits(driver, prompt, driver.answers[request].ids).log_softmax(-1)
    for output, row in zip(outputs, expected, strict=False):
        assert output.logprob == pytest.approx(row[output.token_id].item(), abs=2e-4)
        assert output.top_logprobs is not None
        values, ids = row.topk(5)
        assert [i for i, _ in output.top_logprobs] == ids.tolist()
        assert [v for _, v in output.top_logprobs] == pytest.approx(values.tolist(), abs=2e-4)


def penalized_greedy(driver: Driver, prompt: Prompt, sampling: SamplingParams) -> list[int]:
    """Penalties in float64 on transformers' logits, straight from their definition."""
    text = [entry for entry in prompt if isinstance(entry, int)]
    counts = Counter(text if sampling.input_penalty else [])
    drawn: list[int] = []
    for _ in range(sampling.max_new_tokens):
        row = reference_logits(driver, prompt, drawn)[-1]
        for token_id, count in counts.items():
            value, r = row[token_id].item(), sampling.repetition_penalty
            value = value / r if value > 0 else value * r
            row[token_id] = value - sampling.presence_penalty - sampling.frequency_penalty * count
        drawn.append(int(row.argmax()))
        counts[drawn[-1]] += 1
    return drawn


@pytest.mark.parametrize("input_penalty", [False, True])
@pytest.mark.parametrize(
    "penalties",
    [
        {"repetition_penalty": 1.8},
        {"presence_penalty": 2.0, "frequency_penalty": 0.9},
        {"frequency_penalty": -1.5},
    ],
    ids=str,
)
def test_penalties_equal_a_float64_reference(
    checkpoint: Path, penalties: dict[str, float], input_penalty: bool
) -> None:
    driver = Driver(checkpoint)
    sampling = greedy(12, input_penalty=input_penalty, **penalties)
    prompts: list[Prompt] = [TEXT, SHOWN]
    expected = [penalized_greedy(driver, prompt, sampling) for prompt in prompts]
    driver.add(CROWD[0], greedy(NUM_TOKENS))
    assert driver.generate(*prompts, sampling=sampling) == expected
    assert driver.generate(*prompts, sampling=greedy(12)) != expected


def test_stop_ids_and_the_least_number_of_tokens(checkpoint: Path) -> None:
    driver = Driver(checkpoint)
    plain = driver.generate(TEXT, sampling=greedy(NUM_TOKENS))[0]
    stop = plain[2]
    end = plain.index(stop) + 1
    stopping = SamplingParams(temperature=0, max_new_tokens=NUM_TOKENS, stop_token_ids=(stop,))
    request = driver.add(TEXT, stopping)
    driver.run()
    assert driver.answers[request].ids == plain[:end]
    assert driver.answers[request].finish_reason == "stop"
    sampling = greedy(NUM_TOKENS, stop_token_ids=(stop,), min_new_tokens=end + 4)
    longer = driver.generate(TEXT, sampling=sampling)[0]
    assert len(longer) >= end + 4
    assert stop not in longer[: end + 3]
    assert longer[: end - 1] == plain[: end - 1]


def test_bias_and_allowed_ids(checkpoint: Path) -> None:
    driver = Driver(checkpoint)
    allowed = (17, 33, 320)
    ids = driver.generate(TEXT, sampling=greedy(8, allowed_token_ids=allowed))[0]
    assert set(ids) <= set(allowed)
    assert driver.generate(TEXT, sampling=greedy(8, logit_bias={77: 100.0}))[0] == [77] * 8
    plain = driver.generate(TEXT, sampling=greedy(8))[0]
    ids = driver.generate(TEXT, sampling=greedy(8, logit_bias={plain[0]: -100.0}))[0]
    assert plain[0] not in ids


def test_greedy_neighbours_of_drawing_rows_stay_greedy(checkpoint: Path) -> None:
    driver = Driver(checkpoint)
    plain = driver.generate(TEXT, sampling=greedy(NUM_TOKENS))[0]
    request = driver.add(TEXT, greedy(NUM_TOKENS))
    driver.add(TEXT, drawing(5, num_logprobs=2, presence_penalty=1.0))
    driver.add(TEXT, greedy(NUM_TOKENS, allowed_token_ids=(20, 21)))
    driver.run()
    assert driver.answers[request].ids == plain
    assert all(output.logprob is None for output in driver.answers[request].outputs)
