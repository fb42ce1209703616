"""Tile grids and token counts, against published numbers and transformers' own search."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightvl.config import TilingConfig
from lightvl.grid import MAX_TILES, TilePolicy, num_image_tokens, tile_grid
from lightvl.types import TileGrid


def tiling(
    min_tiles: int = 1, max_tiles: int = 12, use_thumbnail: bool = True, tile_size: int = 448
) -> TilingConfig:
    return TilingConfig(
        tile_size=tile_size,
        tokens_per_tile=256,
        min_tiles=min_tiles,
        max_tiles=max_tiles,
        use_thumbnail=use_thumbnail,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def num_tokens(width: int, height: int, policy: TilePolicy) -> int:
    return num_image_tokens(tile_grid(width, height, tiling(), policy), tiling())


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (448, 448, 256),
        (640, 480, 3328),
        (1024, 1024, 2560),
        (1280, 720, 2304),
        (1920, 1080, 2304),
        (3840, 2160, 2304),
        (1000, 1000, 2560),
    ],
)
def test_published_token_counts(width: int, height: int, expected: int) -> None:
    assert num_tokens(width, height, "internvl") == expected


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(640, 480, 256), (1920, 1080, 3328), (1000, 1000, 1280)]
)
def test_lightllm_token_counts(width: int, height: int, expected: int) -> None:
    assert num_tokens(width, height, "lightllm") == expected


@pytest.mark.parametrize(
    ("width", "height", "max_tiles", "expected"),
    [
        (1000, 750, None, (2, 2)),  # area 3.7: 3, 4 or 5 tiles
        (448, 1344, None, (1, 3)),
        (1344, 448, None, (3, 1)),
        (1120, 1120, None, (3, 2)),  # area 6.25: 6, 7 or 8; |log 2/3| > |log 3/2| in doubles
        (5000, 5000, 4, (2, 2)),
        (5000, 5000, 0, (1, 1)),
        (5000, 100, None, (4, 1)),  # area 2.5: 2, 3 or 4 tiles
    ],
)
def test_lightllm_grids(
    width: int, height: int, max_tiles: int | None, expected: tuple[int, int]
) -> None:
    grid = tile_grid(width, height, tiling(), "lightllm", max_tiles)
    assert (grid.cols, grid.rows) == expected


@pytest.mark.parametrize(("num_images", "num_tiles"), [(1, 13), (2, 7), (6, 7), (7, 1), (64, 1)])
def test_lightllm_gives_many_pictures_fewer_tiles(num_images: int, num_tiles: int) -> None:
    grid = tile_grid(4000, 3000, tiling(), "lightllm", num_images=num_images)
    assert grid.num_tiles == num_tiles


def test_published_rule_ignores_the_number_of_pictures() -> None:
    assert tile_grid(4000, 3000, tiling(), num_images=50) == TileGrid(4, 3, True)


def test_same_grids_as_transformers() -> None:
    module = pytest.importorskip("transformers.models.got_ocr2.image_processing_pil_got_ocr2")
    rng = random.Random(0)
    sizes = [(rng.randint(1, 4500), rng.randint(1, 4500)) for _ in range(4000)]
    sizes += [(448 * c, 448 * r) for c in range(1, 14) for r in range(1, 14)]
    sizes += [(5 * n, 2 * n) for n in range(1, 400)] + [(n, n) for n in range(1, 1400, 7)]
    for fewest, most in [(1, 12), (1, 6), (1, 2), (2, 4), (1, 40), (3, 3)]:
        rule = tiling(fewest, most)
        for width, height in sizes:
            expected = module.get_optimal_tiled_canvas((height, width), (448, 448), fewest, most)
            grid = tile_grid(width, height, rule)
            assert (grid.cols, grid.rows) == expected, (width, height, fewest, most)


def test_a_request_can_lower_and_raise_the_limit() -> None:
    assert tile_grid(4000, 3000, tiling(), max_tiles=1) == TileGrid(1, 1, False)
    assert tile_grid(4000, 3000, tiling(), max_tiles=0) == TileGrid(1, 1, False)
    assert tile_grid(3000, 500, tiling(max_tiles=4), max_tiles=6) == TileGrid(6, 1, True)
    assert tile_grid(3000, 3000, tiling(min_tiles=4), max_tiles=2).num_tiles == 3


def test_thumbnail_only_where_the_checkpoint_has_one() -> None:
    assert tile_grid(896, 448, tiling(use_thumbnail=False)) == TileGrid(2, 1, False)
    assert tile_grid(896, 448, tiling()) == TileGrid(2, 1, True)


@pytest.mark.parametrize("max_tiles", [-1, MAX_TILES + 1])
def test_a_limit_out_of_range_is_refused(max_tiles: int) -> None:
    with pytest.raises(ValueError, match="max_tiles"):
        tile_grid(10, 10, tiling(), max_tiles=max_tiles)


def test_an_empty_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="0x5"):
        tile_grid(0, 5, tiling())


@given(
    width=st.integers(1, 100_000),
    height=st.integers(1, 100_000),
    most=st.integers(1, 40),
    policy=st.sampled_from(["internvl", "lightllm"]),
)
def test_limits_hold(width: int, height: int, most: int, policy: TilePolicy) -> None:
    grid = tile_grid(width, height, tiling(), policy, most)
    assert 1 <= grid.cols * grid.rows <= most
    assert grid.thumbnail == (grid.cols * grid.rows > 1)
