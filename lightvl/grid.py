"""How a picture is cut into tiles, and so how many tokens it costs; torch-free.

Front and engine agree by construction because both only know a `TileGrid` from here. Nothing but
width and height is needed: token counts are exact before a single pixel is decoded.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

from lightvl.config import TilingConfig
from lightvl.types import TileGrid

TilePolicy = Literal["internvl", "lightllm"]

MAX_TILES = 256
"""Most tiles, thumbnail aside, that a request may ask for; bounds the search."""


def tile_grid(
    width: int,
    height: int,
    tiling: TilingConfig,
    policy: TilePolicy = "internvl",
    max_tiles: int | None = None,
    num_images: int = 1,
) -> TileGrid:
    """Chooses the grid of a picture.

    `internvl` is `dynamic_preprocess` of the InternVL model cards, which transformers' processor
    follows with `crop_to_patches`. `lightllm` is the rule of LightLLM 1.0, for equal token counts.

    Args:
        width: Pixels, after EXIF orientation, at least 1.
        height: Pixels, after EXIF orientation, at least 1.
        tiling: The checkpoint's limits and tile size.
        policy: Which rule.
        max_tiles: A request's or the environment's limit of tiles, thumbnail aside (0 means 1);
            None takes the policy's own.
        num_images: Pictures in the request; `lightllm` gives each fewer tiles when there are many.

    Raises:
        ValueError: A size is below 1, or `max_tiles` outside 0 ... `MAX_TILES`.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width}x{height} pixels can't be cut")
    if max_tiles is not None and not 0 <= max_tiles <= MAX_TILES:
        raise ValueError(f"max_tiles is {max_tiles}, allowed are 0 to {MAX_TILES}")
    if policy == "lightllm":
        limit = _lightllm_limit(num_images) if max_tiles is None else max_tiles
        cols, rows = _lightllm_grid(width, height, tiling.tile_size, limit)
        return TileGrid(cols, rows, cols * rows > 1)
    limit = max(1, tiling.max_tiles if max_tiles is None else max_tiles)
    cols, rows = _published_grid(width, height, tiling, limit)
    return TileGrid(cols, rows, tiling.use_thumbnail and cols * rows > 1)


def num_image_tokens(grid: TileGrid, tiling: TilingConfig) -> int:
    """Returns the prompt tokens of a picture cut by `grid`, its two brackets not counted."""
    return grid.num_tiles * tiling.tokens_per_tile


def _published_grid(width: int, height: int, tiling: TilingConfig, limit: int) -> tuple[int, int]:
    """The grid of nearest aspect ratio; on a tie the larger one if the picture can fill half."""
    ratio = width / height
    twice_area = 2.0 * width * height / tiling.tile_size**2
    best, least = (1, 1), math.inf
    for cols, rows in _grids(min(tiling.min_tiles, limit), limit):
        distance = abs(ratio - cols / rows)
        if distance < least or (distance == least and twice_area > cols * rows):
            best, least = (cols, rows), distance
    return best


@lru_cache(maxsize=MAX_TILES)
def _grids(fewest: int, most: int) -> tuple[tuple[int, int], ...]:
    """All (cols, rows) with `fewest` to `most` tiles, fewest tiles first, then fewest columns."""
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most // c + 1) if c * r >= fewest]
    return tuple(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[0])))


def _lightllm_limit(num_images: int) -> int:
    if num_images <= 1:
        return 12
    return 6 if num_images <= 6 else 1


def _lightllm_grid(width: int, height: int, tile_size: int, limit: int) -> tuple[int, int]:
    """About as many tiles as the picture's area fills, of the nearest logarithmic ratio."""
    wanted = min(math.ceil(width * height / tile_size**2), limit)
    if wanted <= 1:
        return 1, 1
    log_ratio = math.log(width / height)
    counts = range(wanted - 1, min(wanted + 1, limit) + 1)
    candidates = [grid for count in counts for grid in _factor_grids(count)]
    return min(candidates, key=lambda grid: abs(log_ratio - math.log(grid[0] / grid[1])))


def _factor_grids(count: int) -> Iterator[tuple[int, int]]:
    return ((cols, count // cols) for cols in range(1, count + 1) if count % cols == 0)
