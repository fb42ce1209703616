"""torchvision's tensor operators on the GPU; they round otherwise than Pillow."""

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from benchmarks.kernels.image import TILE, patches
from benchmarks.kernels.timing import Prepared, keeping
from lightvl.testing.image_reference import ImageInputs


def image(i: ImageInputs) -> Prepared:
    """Resize to the grid and to the thumbnail, cut tiles, normalise."""
    assert i.mean_std is not None
    cols, rows, _ = i.grids[0].tolist()
    picture = i.images[0].permute(2, 0, 1).contiguous()
    mean, std = i.mean_std.cuda()[:, :, None, None]

    def resize(height: int, width: int) -> Tensor:
        resized: Tensor = functional.resize(
            picture, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True
        )
        return resized

    def call() -> Tensor:
        whole = resize(rows * TILE, cols * TILE).view(3, rows, TILE, cols, TILE)
        tiles = whole.permute(1, 3, 0, 2, 4).reshape(-1, 3, TILE, TILE)
        tiles = torch.cat((tiles, resize(TILE, TILE)[None]))
        out: Tensor = ((tiles.float() / 255 - mean) / std).to(i.dtype)
        return out

    return keeping(call, patches)
