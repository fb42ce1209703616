"""Tiles reach their pages whatever the batches, and patches live until the last tile."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lightvl.config import TilingConfig
from lightvl.types import TileGrid
from lightvl.vision.pool import PATCHES_PER_CALL, VisionPool
from lightvl.vision.preprocess import Preprocessor
from lightvl.vision.work import PictureWork, TileWork

TILE, PATCH, TOKENS, WIDTH = 28, 14, 3, 5
TILING = TilingConfig(
    tile_size=TILE,
    tokens_per_tile=TOKENS,
    min_tiles=1,
    max_tiles=12,
    use_thumbnail=True,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)


class MeanEncoder:
    """Embeds a tile as its mean brightness."""

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def encode_tiles(self, patches: Tensor) -> Tensor:
        self.batch_sizes.append(len(patches))
        return patches.mean((1, 2)).view(-1, 1, 1).expand(-1, TOKENS, WIDTH)


def make_pool(pixels: bytearray, patches_per_tile: int) -> tuple[VisionPool, MeanEncoder]:
    encoder = MeanEncoder()
    preprocessor = Preprocessor(TILING, PATCH, torch.float32, memoryview(pixels))
    pool = VisionPool(encoder, preprocessor, 8, patches_per_tile, TOKENS, WIDTH, torch.float32)
    return pool, encoder


def place(pixels: bytearray, offset: int, shades: list[int]) -> PictureWork:
    """Writes a picture of one row of evenly grey tiles."""
    rows = np.repeat(np.array(shades, dtype=np.uint8), TILE)[None, :, None]
    picture = np.broadcast_to(rows, (TILE, TILE * len(shades), 3))
    pixels[offset : offset + picture.size] = picture.tobytes()
    grid = TileGrid(len(shades), 1, False)
    return PictureWork(bytes([offset % 251]) * 32, offset, picture.shape[1], TILE, grid)


@pytest.mark.parametrize("tiles_per_call", [1, 2, 100])
def test_tiles_reach_their_pages(tiles_per_call: int) -> None:
    pixels = bytearray(40_000)
    pool, encoder = make_pool(pixels, PATCHES_PER_CALL // tiles_per_call)
    first, other = place(pixels, 11, [0, 51, 102]), place(pixels, 20_001, [255, 204])
    pool.run([first, other], [TileWork(first.key, 0, 6), TileWork(other.key, 1, 0)])
    pixels[:] = bytes(len(pixels))
    assert pool.num_pending_pictures == 2
    tiles = [TileWork(other.key, 0, 5), TileWork(first.key, 2, 1), TileWork(first.key, 1, 3)]
    pool.run([], tiles)
    assert pool.num_pending_pictures == 0
    pages = pool.arena.view(8, TOKENS, WIDTH)
    for page, shade in ((6, 0.0), (3, 0.2), (1, 0.4), (5, 1.0), (0, 0.8)):
        torch.testing.assert_close(pages[page], torch.full((TOKENS, WIDTH), shade))
    assert sum(encoder.batch_sizes) == 5
    assert max(encoder.batch_sizes) == min(tiles_per_call, 3)


def test_nothing_to_do() -> None:
    pool, encoder = make_pool(bytearray(8), PATCHES_PER_CALL)
    pool.run([], [])
    assert not encoder.batch_sizes
