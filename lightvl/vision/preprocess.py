"""From decoded RGB in the shared-memory arena to the patches that the vision tower reads."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightvl import ops
from lightvl.config import TilingConfig
from lightvl.vision.work import PictureWork


class Preprocessor:
    """Resizes, cuts and normalises pictures for one checkpoint."""

    def __init__(
        self, tiling: TilingConfig, patch_size: int, dtype: torch.dtype, pixels: memoryview
    ) -> None:
        """Keeps a view of the arena.

        Args:
            tiling: The checkpoint's tile size, mean and standard deviation.
            patch_size: Pixels along a patch's side.
            dtype: Of the patches.
            pixels: The shared-memory arena, in which the front places decoded pictures.
        """
        self._tile_size = tiling.tile_size
        self._patch_size = patch_size
        self._mean_std = torch.tensor([tiling.mean, tiling.std], dtype=torch.float32)
        self._dtype = dtype
        self._pixels = torch.frombuffer(pixels, dtype=torch.uint8)

    def patches(self, works: Sequence[PictureWork]) -> list[Tensor]:
        """Returns each picture's tiles as patches [num_tiles, Q, 3*p*p], thumbnail last."""
        grids = [(work.grid.cols, work.grid.rows, int(work.grid.thumbnail)) for work in works]
        patches = ops.image_preprocess(
            [self._image(work) for work in works],
            torch.tensor(grids, dtype=torch.int32),
            self._tile_size,
            self._patch_size,
            self._mean_std,
            self._dtype,
        )
        return list(patches.split([work.grid.num_tiles for work in works]))

    def _image(self, work: PictureWork) -> Tensor:
        num_bytes = work.height * work.width * 3
        return self._pixels[work.offset : work.offset + num_bytes].view(work.height, work.width, 3)
