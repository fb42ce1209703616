"""Image preprocessing with Pillow and numpy, and the pictures that tests and benchmarks run."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

IMAGENET_MEAN_STD = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """A picture's size in pixels and the grid of tiles that it is cut into."""

    width: int
    height: int
    cols: int = 1
    rows: int = 1
    thumbnail: bool = False


@dataclass(frozen=True)
class ImageCase:
    """Pictures of one call."""

    pictures: tuple[Picture, ...]
    tile_size: int = 56
    patch_size: int = 14


@dataclass(frozen=True)
class ImageInputs:
    """Arguments of `image_preprocess` in its order."""

    images: list[Tensor]
    grids: Tensor
    tile_size: int
    patch_size: int
    mean_std: Tensor | None
    dtype: torch.dtype

    def arguments(self) -> tuple[list[Tensor], Tensor, int, int, Tensor | None, torch.dtype]:
        """Return them as positional arguments."""
        sizes = (self.tile_size, self.patch_size)
        return self.images, self.grids, *sizes, self.mean_std, self.dtype


def make_image_inputs(case: ImageCase, dtype: torch.dtype, seed: int = 0) -> ImageInputs:
    """Random noise, the hardest picture to round alike; its extremes overshoot when resized."""
    rng = np.random.default_rng(seed)
    noise = [rng.integers(0, 256, (p.height, p.width, 3), np.uint8) for p in case.pictures]
    grids = [[p.cols, p.rows, int(p.thumbnail)] for p in case.pictures]
    return ImageInputs(
        images=[torch.from_numpy(pixels // 64 * 85) for pixels in noise],
        grids=torch.tensor(grids, dtype=torch.int32).view(-1, 3),
        tile_size=case.tile_size,
        patch_size=case.patch_size,
        mean_std=None if dtype == torch.uint8 else IMAGENET_MEAN_STD,
        dtype=dtype,
    )


def resized_tiles(pixels: Pixels, grid: Sequence[int], tile_size: int) -> list[Pixels]:
    """Return the tiles of a picture, each [S, S, 3]: row by row, then the thumbnail."""
    cols, rows, thumbnail = grid
    picture = Image.fromarray(pixels)

    def resized(cols: int, rows: int) -> Pixels:
        size = (cols * tile_size, rows * tile_size)
        return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))

    whole = resized(cols, rows).reshape(rows, tile_size, cols, tile_size, 3)
    tiles = list(whole.swapaxes(1, 2).reshape(-1, tile_size, tile_size, 3))
    return [*tiles, resized(1, 1)] if thumbnail else tiles


def patches(tiles: Tensor, patch_size: int) -> Tensor:
    """Rearrange [tiles, S, S, 3] as [tiles, patches, 3 * patch_size**2]."""
    num_tiles, tile_size = tiles.shape[:2]
    side = tile_size // patch_size
    grid = tiles.view(num_tiles, side, patch_size, side, patch_size, 3)
    return grid.permute(0, 1, 3, 5, 2, 4).reshape(num_tiles, side * side, -1)


def image_preprocess_reference(inputs: ImageInputs) -> Tensor:
    """Return the patches of the inputs: float64 if normalised, else uint8.

    Pillow 13 or newer: before, it never resampled down first.
    """
    tiles = [
        tile
        for image, grid in zip(inputs.images, inputs.grids.tolist(), strict=True)
        for tile in resized_tiles(image.numpy(), grid, inputs.tile_size)
    ]
    size = inputs.tile_size
    stacked = torch.from_numpy(np.stack(tiles or [np.empty((0, size, 3), np.uint8)]))
    stacked = stacked[: len(tiles)]
    if inputs.mean_std is not None:
        mean, std = inputs.mean_std.double()
        stacked = (stacked.double() / 255 - mean) / std
    return patches(stacked, inputs.patch_size)


IMAGE_CASES = (
    ImageCase((Picture(56, 56),)),
    ImageCase((Picture(56, 100, 1, 2), Picture(100, 56, 2, 1, True))),
    ImageCase((Picture(640, 480, 4, 3, True),)),
    ImageCase((Picture(1, 1), Picture(1, 700, 1, 2, True), Picture(700, 1, 2, 1, True))),
    ImageCase((Picture(37, 45, 2, 1), Picture(333, 17), Picture(17, 333, 3, 2)), 28),
    ImageCase((Picture(300, 900, 2, 2, True), Picture(112, 900, 2, 2)), 64, 16),
    ImageCase((Picture(999, 1001, 2, 1, True),), 224),
    ImageCase((Picture(1, 107, 3, 3, True), Picture(172, 13, 3, 2)), 16, 1),
    ImageCase((Picture(8, 31, 2, 1),), 160, 160),
)
IMAGE_SPEED_CASES = (
    ImageCase((Picture(448, 448),), 448),
    ImageCase((Picture(640, 480, 4, 3, True),), 448),
    ImageCase((Picture(1920, 1080, 4, 2, True),), 448),
    ImageCase((Picture(4000, 3000, 4, 3, True),), 448),
)
