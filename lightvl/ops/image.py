"""Pictures to the tiles that a vision tower reads."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightvl.ops.library import out_operator

_image_preprocess = out_operator("image_preprocess")


def image_preprocess(
    images: Sequence[Tensor],
    grids: Tensor,
    tile_size: int,
    patch_size: int,
    mean_std: Tensor | None,
    dtype: torch.dtype,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Resize pictures, cut them into tiles and lay those out as patches.

    Each picture is resized to its grid of tiles, and again to one tile for the thumbnail, exactly
    as Pillow's `Image.resize(size, BICUBIC)` does: antialiased, across then down, rounded to 8
    bits after each. Tiles come row by row, the thumbnail last.

    Source: `dynamic_preprocess` of the InternVL model cards.

    Args:
        images: I pictures, uint8 [height, width, 3] RGB, contiguous, all on one device.
        grids: int32 [I, 3] on the CPU, like mean_std: columns, rows, and 1 for a thumbnail, else 0.
        tile_size: side of a tile in pixels, a multiple of `patch_size` up to 4096.
        patch_size: side of a patch in pixels.
        mean_std: float32 [2, 3], of the channels scaled to 0..1; None for uint8.
        dtype: float32, bfloat16 or float16; or uint8, the values before they are normalised.
        out: [tiles, patches, 3 * patch_size**2] in `dtype` to write to; a new tensor when absent.

    Returns:
        [tiles, patches, 3 * patch_size**2] in `dtype`, a patch's values in the order channel,
        row, column; (value / 255 - mean) / std in float32, then rounded to `dtype`. `out` where
        it was given.

    Raises:
        ValueError: shapes, dtypes or sizes do not fit.
    """
    if out is None:
        num_tiles = sum(cols * rows + thumbnail for cols, rows, thumbnail in grids.tolist())
        num_patches = (tile_size // patch_size) ** 2
        device = images[0].device if images else grids.device
        out = torch.empty(num_tiles, num_patches, 3 * patch_size**2, dtype=dtype, device=device)
    elif out.dtype != dtype:
        raise ValueError(f"image_preprocess: out is {out.dtype}, expected {dtype}")
    _image_preprocess(list(images), grids, tile_size, patch_size, mean_std, out)
    return out
