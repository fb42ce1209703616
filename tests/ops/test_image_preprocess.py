"""image_preprocess against Pillow: the same 8-bit values, then the same normalisation."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from lightvl.config import TilingConfig
from lightvl.grid import tile_grid
from lightvl.ops import image_preprocess
from lightvl.testing.compare import DTYPES
from lightvl.testing.image_reference import (
    IMAGE_CASES,
    IMAGENET_MEAN_STD,
    ImageCase,
    Picture,
    image_preprocess_reference,
    make_image_inputs,
    patches,
)
from lightvl.testing.poison import poisoned_memory

TILING = TilingConfig(
    tile_size=448,
    tokens_per_tile=256,
    min_tiles=1,
    max_tiles=12,
    use_thumbnail=True,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def assert_equals_pillow(case: ImageCase) -> None:
    inputs = make_image_inputs(case, torch.uint8)
    actual = image_preprocess(*inputs.arguments())
    expected = image_preprocess_reference(inputs)
    assert torch.equal(actual, expected), f"{(actual != expected).double().mean():.2%} differ"


@pytest.mark.parametrize("case", IMAGE_CASES, ids=str)
def test_equals_pillow(case: ImageCase) -> None:
    assert_equals_pillow(case)


def sizes(limit: int) -> st.SearchStrategy[int]:
    """Pixels from 1 to limit, small ones as likely as large ones."""
    bits = st.integers(1, limit.bit_length())
    return bits.flatmap(lambda n: st.integers(1 << (n - 1), min((1 << n) - 1, limit)))


grids = st.tuples(st.integers(1, 4), st.integers(1, 4), st.booleans())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes(4000), sizes(3000), grids, st.sampled_from([(28, 14), (64, 16), (224, 14)]))
@example(4000, 3000, (4, 3, True), (448, 14))
@example(3000, 4000, (3, 4, True), (448, 14))
@example(1, 1, (1, 1, True), (448, 14))
@example(4000, 1, (4, 1, True), (448, 14))
@example(1, 3000, (1, 4, True), (448, 14))
@example(448, 2000, (1, 2, True), (448, 14))
@example(2000, 448, (3, 1, False), (448, 14))
@example(449, 447, (1, 1, False), (448, 14))
def test_random_sizes_equal_pillow(
    width: int, height: int, grid: tuple[int, int, bool], tile: tuple[int, int]
) -> None:
    assert_equals_pillow(ImageCase((Picture(width, height, *grid),), *tile))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normalised_values_are_rounded_once(dtype: torch.dtype) -> None:
    case = ImageCase((Picture(90, 70, 2, 1, True),))
    raw = image_preprocess(*make_image_inputs(case, torch.uint8).arguments())
    mean, std = IMAGENET_MEAN_STD.repeat_interleave(case.patch_size**2, 1)
    expected = ((raw.float() / 255 - mean) / std).to(dtype)
    with poisoned_memory():
        actual = image_preprocess(*make_image_inputs(case, dtype).arguments())
    assert torch.equal(actual, expected)


def test_threads_do_not_change_the_result() -> None:
    inputs = make_image_inputs(ImageCase((Picture(500, 700, 2, 3, True),), 112), torch.uint8)
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 7):
            torch.set_num_threads(num_threads)
            results.append(image_preprocess(*inputs.arguments()))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("size", [(640, 480), (448, 448), (300, 1100)])
def test_equals_the_published_processor(size: tuple[int, int]) -> None:
    width, height = size
    (image,) = make_image_inputs(ImageCase((Picture(width, height),)), torch.uint8).images
    processor = GotOcr2ImageProcessorPil(
        size={"height": 448, "width": 448},
        image_mean=TILING.mean,
        image_std=TILING.std,
        crop_to_patches=True,
    )
    picture = Image.fromarray(image.numpy())
    expected = processor(picture, return_tensors="pt")["pixel_values"].movedim(1, -1)
    grid = tile_grid(width, height, TILING)
    numbers = torch.tensor([[grid.cols, grid.rows, int(grid.thumbnail)]], dtype=torch.int32)
    actual = image_preprocess([image], numbers, 448, 14, IMAGENET_MEAN_STD, torch.float32)
    torch.testing.assert_close(actual, patches(expected, 14), rtol=2e-6, atol=2e-6)


def test_no_pictures() -> None:
    inputs = make_image_inputs(ImageCase(()), torch.float32)
    assert image_preprocess(*inputs.arguments()).shape == (0, 16, 588)


def test_opcheck() -> None:
    inputs = make_image_inputs(ImageCase((Picture(70, 50, 2, 1, True),)), torch.float32)
    torch.library.opcheck(
        torch.ops.lightvl.image_preprocess.default,
        (*inputs.arguments()[:-1], torch.empty(3, 16, 588)),
    )


def grid_row(*values: int) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.int32)


WRONG: dict[str, dict[str, Any]] = {
    r"images is \[50, 70, 4\], expected": {"images": [torch.zeros(50, 70, 4, dtype=torch.uint8)]},
    "images is float32, expected uint8": {"images": [torch.zeros(50, 70, 3)]},
    "images must not be empty": {"images": [torch.zeros(0, 70, 3, dtype=torch.uint8)]},
    "images must be contiguous": {"images": [torch.zeros(9, 18, 3, dtype=torch.uint8)[:, ::2]]},
    r"grids is \[1, 3\], expected \[0, 3\]": {"images": []},
    "grids must have 1 to 4096": {"grids": grid_row(0, 1, 1)},
    "thumbnail must be 0 or 1": {"grids": grid_row(1, 1, 2)},
    "grids is int64": {"grids": grid_row(1, 1, 0).long()},
    "multiple of patch_size": {"tile_size": 50},
    "mean_std is required": {"mean_std": None},
    r"mean_std is \[3, 2\]": {"mean_std": torch.ones(3, 2)},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    inputs = make_image_inputs(ImageCase((Picture(70, 50),)), torch.float32)
    with pytest.raises(ValueError, match=f"image_preprocess: .*{message}"):
        image_preprocess(*replace(inputs, **WRONG[message]).arguments())


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 16, 588), torch.float32), ((1, 16, 588), torch.int32)]
)
def test_an_output_that_does_not_fit_is_named(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = make_image_inputs(ImageCase((Picture(70, 50),)), torch.float32)
    out = torch.empty(shape, dtype=dtype)
    with pytest.raises(ValueError, match="image_preprocess: out is"):
        torch.ops.lightvl.image_preprocess(*inputs.arguments()[:-1], out)
