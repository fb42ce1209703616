"""InternVL against `transformers`: logits and greedy text, every family, layout and tower."""

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from lightvl.config import Layout, TextFamily
from lightvl.model_config import load_model_config
from lightvl.models.internvl import InternVLModel
from lightvl.models.registry import load_model
from lightvl.testing.checkpoint_weights import random_tensors
from lightvl.testing.checkpoints import (
    VisionKind,
    text_config,
    vision_config,
    write_checkpoint,
    write_model,
)
from tests.models.oracle import reference_greedy, reference_logits
from tests.models.paged_loop import PICTURE_ID, Prompt, greedy, prompt_logits

NUM_TOKENS = 26
TOLERANCE = 1e-4


class Case(NamedTuple):
    """One kind of checkpoint."""

    family: TextFamily
    layout: Layout
    vision: VisionKind
    tied: bool


FAMILIES: list[TextFamily] = ["qwen2", "qwen3", "llama", "internlm2"]
LAYOUTS: list[Layout] = ["original", "native"]
TOWERS: list[VisionKind] = ["300m", "6b"]
CASES = [
    Case(*case)
    for case in product(FAMILIES, LAYOUTS, TOWERS, [False, True])
    if case[:2] != ("internlm2", "native")
]


class Checkpoints(NamedTuple):
    """A case's model and the native checkpoint of the same weights."""

    model: InternVLModel
    reference: Path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Checkpoints]:
    @cache
    def write(case: Case) -> Path:
        path = tmp_path_factory.mktemp("checkpoint")
        return write_checkpoint(path, **case._asdict(), seed=3)

    @cache
    def make(case: Case) -> Checkpoints:
        family = "llama" if case.family == "internlm2" else case.family
        reference = write(case._replace(family=family, layout="native"))
        return Checkpoints(load(write(case)), reference)

    return make


def load(path: Path) -> InternVLModel:
    return load_model(
        load_model_config(path),
        path,
        dtype=torch.float32,
        device=torch.device("cpu"),
        load_workers=2,
    )


def text_prompt(num_tokens: int = 19, seed: int = 0) -> Prompt:
    generator = torch.Generator().manual_seed(seed)
    return Prompt(torch.randint(12, 400, (num_tokens,), generator=generator).tolist())


def picture_prompt(*tiles_of_picture: int, seed: int = 0) -> Prompt:
    """Returns a prompt with pictures of so many tiles (4 tokens each) between words."""
    generator = torch.Generator().manual_seed(seed)
    ids = text_prompt(5, seed).ids
    for i, num_tiles in enumerate(tiles_of_picture):
        ids += [3, *[PICTURE_ID] * (4 * num_tiles), 4, *text_prompt(3 + i, seed + i).ids]
    patches = torch.randn(sum(tiles_of_picture), 16, 3 * 14 * 14, generator=generator)
    return Prompt(ids, patches)


PROMPTS = {
    "text": text_prompt(),
    "picture": picture_prompt(3),
    "pictures": picture_prompt(1, 4, 2),
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_logits_equal_transformers(
    case: Case, prompt: Prompt, checkpoints: Callable[[Case], Checkpoints]
) -> None:
    model, reference = checkpoints(case)
    expected = reference_logits(reference, prompt)
    actual = prompt_logits(model, prompt)
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_greedy_equals_transformers_alone_and_batched(
    case: Case, checkpoints: Callable[[Case], Checkpoints]
) -> None:
    model, reference = checkpoints(case)
    prompts = list(PROMPTS.values())
    expected = [reference_greedy(reference, prompt, NUM_TOKENS) for prompt in prompts]
    assert [len(set(ids)) > 3 for ids in expected] == [True] * 3, "the reference repeats itself"
    assert greedy(model, prompts, NUM_TOKENS) == expected
    assert [greedy(model, [prompt], NUM_TOKENS)[0] for prompt in prompts] == expected


@pytest.mark.parametrize("chunk", [1, 3, 7, 17])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_prefill_changes_nothing(
    family: TextFamily, chunk: int, checkpoints: Callable[[Case], Checkpoints]
) -> None:
    model, reference = checkpoints(Case(family, "original", "300m", False))
    prompts = list(PROMPTS.values())
    expected = [reference_greedy(reference, prompt, NUM_TOKENS) for prompt in prompts]
    assert greedy(model, prompts, NUM_TOKENS, chunk) == expected


@pytest.mark.parametrize(
    ("family", "biases", "reference_family", "reference_biases"),
    [
        ("llama", ["attention_bias", "mlp_bias"], "llama", ["attention_bias", "mlp_bias"]),
        ("qwen3", ["attention_bias"], "qwen3", ["attention_bias"]),
        ("internlm2", ["bias"], "llama", ["attention_bias"]),
    ],
)
def test_biases(
    family: TextFamily,
    biases: list[str],
    reference_family: TextFamily,
    reference_biases: list[str],
    tmp_path: Path,
) -> None:
    def write(name: str, family: TextFamily, layout: Layout, biases: list[str]) -> Path:
        text = text_config(family, tied=False, max_position=256, dtype="fp32")
        text |= dict.fromkeys(biases, True)
        tower = vision_config("300m", 56)
        write_model(tmp_path / name, layout, text, tower, random_tensors(text, tower, seed=1))
        return tmp_path / name

    model = load(write("ours", family, "original", biases))
    reference = write("reference", reference_family, "native", reference_biases)
    prompt = PROMPTS["picture"]
    expected = reference_logits(reference, prompt)
    error = (prompt_logits(model, prompt) - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE


def test_text_depends_on_the_picture(checkpoints: Callable[[Case], Checkpoints]) -> None:
    model, _ = checkpoints(Case("qwen2", "original", "300m", False))
    one, other = picture_prompt(3), picture_prompt(3)
    assert one.patches is not None
    other.patches = one.patches.flip(0)
    first, second = greedy(model, [one, other], 8)
    assert first != second


def test_forward_of_one_tile_equals_its_batch(checkpoints: Callable[[Case], Checkpoints]) -> None:
    for tower in TOWERS:
        model, _ = checkpoints(Case("qwen2", "original", tower, False))
        patches = picture_prompt(5).patches
        assert patches is not None
        batch = model.encode_tiles(patches)
        alone = torch.cat([model.encode_tiles(tile[None]) for tile in patches])
        torch.testing.assert_close(alone, batch, rtol=1e-4, atol=1e-5)
