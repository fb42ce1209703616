"""Rows of image preprocessing: two pictures to bfloat16 tiles of 448 pixels and a thumbnail."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.kernels.row import Row, Target
from benchmarks.kernels.timing import Prepared, relative_error
from lightvl import ops
from lightvl.testing.image_reference import IMAGENET_MEAN_STD, ImageInputs

TILE, PATCH = 448, 14
# Width, height, columns and rows of tiles, target, best peer where it was set.
PICTURES = ((1920, 1080, 4, 2, 20, 402), (4000, 3000, 4, 3, 60, 1968))


def make(width: int, height: int, cols: int, rows: int) -> ImageInputs:
    """A smooth picture with grain, on the GPU."""
    coarse = torch.rand(1, 3, height // 16, width // 16, device="cuda") * 255
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    grain = torch.randint(-8, 9, smooth.shape, device="cuda")
    pixels = (smooth + grain).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
    grid = torch.tensor([[cols, rows, 1]], dtype=torch.int32)
    return ImageInputs([pixels], grid, TILE, PATCH, IMAGENET_MEAN_STD, torch.bfloat16)


def patches(tiles: Tensor) -> Tensor:
    """Tiles [N, 3, S, S] in the layout of our output."""
    side = TILE // PATCH
    grid = tiles.view(-1, 3, side, PATCH, side, PATCH).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(-1, side * side, 3 * PATCH * PATCH)


def check(i: ImageInputs) -> Callable[[Tensor], float]:
    """Difference from the CPU kernel, which equals Pillow bit for bit before it normalises."""
    expected = ops.image_preprocess(
        [x.cpu() for x in i.images], i.grids, TILE, PATCH, i.mean_std, i.dtype
    ).cuda()
    return lambda out: relative_error(out, expected)


def ours(i: ImageInputs) -> Prepared:
    """Our operator."""
    cols, rows, thumbnail = i.grids[0].tolist()
    shape = (cols * rows + thumbnail, (TILE // PATCH) ** 2, 3 * PATCH**2)
    out = torch.full(shape, torch.nan, dtype=i.dtype, device="cuda")
    operator = torch.ops.lightvl.image_preprocess.default
    return Prepared(lambda: operator(i.images, i.grids, TILE, PATCH, i.mean_std, out), lambda: out)


def rows() -> Iterator[Row]:
    """Both pictures."""
    for width, height, cols, lines, us, best_us in PICTURES:
        tiles = cols * lines + 1
        num_bytes = 3 * width * height + 2 * tiles * 3 * TILE**2
        yield Row(
            group="image",
            operator="image_preprocess",
            shape=f"{width} x {height}, {tiles} tiles",
            target=Target(us, best_us),
            num_bytes=num_bytes,
            num_flops=0,
            rate="copy",
            set_bytes=num_bytes,
            make=lambda size=(width, height, cols, lines): make(*size),  # type: ignore[misc]
            check=check,
            tolerance=1e-5,
            ours=ours,
            most_sets=8,
            quick=width == 1920,
        )
