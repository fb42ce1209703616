"""The vision tower's work: decoded pictures in, rows of the embedding arena out."""

from collections.abc import Sequence
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from lightvl.vision.preprocess import Preprocessor
from lightvl.vision.work import PictureWork, TileWork

PATCHES_PER_CALL = 1024
"""Most patches in one pass through the tower on a CPU, one tile at least: the activations of four
times as many leave the cores' caches and cost a fifth more time a tile."""


class TileEncoder(Protocol):
    """The part of a model that the pool runs."""

    def encode_tiles(self, patches: Tensor) -> Tensor:
        """Turns patches [B, Q, 3*p*p] into embeddings [B, tokens_per_tile, C]."""


class VisionPool:
    """Runs tiles through the tower into an arena of one page per tile.

    A picture's patches are made at once, when its pixels are there, and kept until its last tile
    has run, so that the pixels' room in shared memory is free after one step.
    """

    def __init__(
        self,
        model: TileEncoder,
        preprocessor: Preprocessor,
        num_pages: int,
        patches_per_tile: int,
        tokens_per_tile: int,
        hidden_size: int,
        dtype: torch.dtype,
    ) -> None:
        """Allocates the arena.

        Args:
            model: Has the tower and the projector.
            preprocessor: Makes patches of pixels.
            num_pages: Tiles that the arena holds.
            patches_per_tile: Patches that the tower reads of a tile, Q.
            tokens_per_tile: Rows of a page.
            hidden_size: Width of a row.
            dtype: Of the embeddings.
        """
        self._model = model
        self._preprocessor = preprocessor
        self._tiles_per_call = max(1, PATCHES_PER_CALL // patches_per_tile)
        self._pages = torch.empty(num_pages, tokens_per_tile, hidden_size, dtype=dtype)
        self._patches: dict[bytes, Tensor] = {}
        self._tiles_left: dict[bytes, int] = {}

    @property
    def arena(self) -> Tensor:
        """The embeddings, [num_pages * tokens_per_tile, C]."""
        return self._pages.flatten(0, 1)

    @property
    def num_pending_pictures(self) -> int:
        """Pictures whose patches wait for the tower."""
        return len(self._patches)

    def run(self, pictures: Sequence[PictureWork], tiles: Sequence[TileWork]) -> float:
        """Makes patches of new pictures, then runs `tiles` through the tower.

        Returns:
            How long the patches took, in seconds.
        """
        begin = perf_counter()
        if pictures:
            for work, patches in zip(pictures, self._preprocessor.patches(pictures), strict=True):
                self._patches[work.key] = patches
                self._tiles_left[work.key] = work.grid.num_tiles
        preprocess_s = perf_counter() - begin
        for first in range(0, len(tiles), self._tiles_per_call):
            self._encode(tiles[first : first + self._tiles_per_call])
        return preprocess_s

    def _encode(self, tiles: Sequence[TileWork]) -> None:
        patches = torch.stack([self._patches[tile.key][tile.tile] for tile in tiles])
        pages = torch.tensor([tile.page for tile in tiles])
        self._pages.index_copy_(0, pages, self._model.encode_tiles(patches))
        for tile in tiles:
            self._finish(tile.key)

    def _finish(self, key: bytes) -> None:
        self._tiles_left[key] -= 1
        if not self._tiles_left[key]:
            del self._patches[key], self._tiles_left[key]
