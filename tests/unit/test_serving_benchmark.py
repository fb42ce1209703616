"""The serving benchmark's own arithmetic, and the checkpoint that it gives to transformers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.serving.report import Target
from benchmarks.serving.soak import growth
from benchmarks.serving.to_native import to_native
from benchmarks.serving.workload import (
    Answer,
    decode_rate,
    gaps,
    make_questions,
    whole_rate,
)
from lightvl.config import TextFamily
from lightvl.testing.checkpoints import write_checkpoint


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_the_converted_checkpoint_is_the_native_one(tmp_path: Path, family: TextFamily) -> None:
    original = write_checkpoint(tmp_path / "original", family=family, layout="original")
    native = write_checkpoint(tmp_path / "native", family=family, layout="native")
    converted = to_native(original, tmp_path / "converted")
    expected = load_file(native / "model.safetensors")
    actual = load_file(converted / "model.safetensors")
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    configs = [json.loads((path / "config.json").read_text()) for path in (converted, native)]
    for config in configs:
        config["text_config"].pop("rope_theta", None)  # the native layout has it twice or once
        config["text_config"].pop("rope_scaling", None)
    assert configs[0] == configs[1]


def test_internlm2_is_refused(tmp_path: Path) -> None:
    original = write_checkpoint(tmp_path / "original", family="internlm2", layout="original")
    with pytest.raises(ValueError, match="internlm2"):
        to_native(original, tmp_path / "converted")


def test_the_decode_window_holds_all_sequences() -> None:
    early = Answer(0.0, [1.0, 2.0, 3.0, 4.0])
    late = Answer(0.0, [2.0, 3.0, 4.0, 5.0])
    assert decode_rate([early, late]) == 2.0  # from 2 to 4, two tokens each
    assert decode_rate([early]) == 1.0
    assert whole_rate([early, late]) == 8 / 5
    assert gaps([early, late]) == [1.0] * 6
    assert early.ttft_s == 1.0
    assert early.tpot_s == 1.0


def test_questions_repeat_with_the_seed_alone() -> None:
    first, again, other = (make_questions(seed, 2, 1000, 8) for seed in (1, 1, 2))
    assert first == again
    pictures = {question.picture for question in first + other}
    texts = {tuple(question.text_ids) for question in first + other}
    assert len(pictures) == len(texts) == 4


def test_a_target_goes_by_the_median() -> None:
    assert Target("rate", "demo", [0.5, 1.3, 9.0], 1.2).met
    assert not Target("rate", "demo", [0.5, 1.1, 9.0], 1.2).met
    assert not Target("time", "demo", [0.5, 1.3, 9.0], 1.2, at_least=False).met


def test_answers_that_never_decode_at_once_have_no_rate() -> None:
    assert decode_rate([Answer(0.0, [1.0, 2.0]), Answer(0.0, [3.0, 4.0])]) is None


def test_growth_of_memory_is_the_slope_of_a_line() -> None:
    samples = [(10 * i, 10**8 + 500 * 10 * i) for i in range(200)]
    level = 10**8 + 500 * 10 * 125  # the mean behind the warm-up, about
    share, half = growth(samples)
    assert share == pytest.approx(500_000 / level, rel=1e-3)
    assert half == pytest.approx(0, abs=1e-9)
    wobbling = [(n, m + (-1) ** (n // 100) * 10**6) for n, m in samples]
    share, half = growth(wobbling)
    assert abs(share - 500_000 / level) < half < 0.05
