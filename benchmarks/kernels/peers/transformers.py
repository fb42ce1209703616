"""The image processor that transformers gives InternVL, on a picture that is on the GPU."""

import torch
from transformers import GotOcr2ImageProcessor

from benchmarks.kernels.image import TILE, patches
from benchmarks.kernels.timing import Prepared, keeping
from lightvl.testing.image_reference import ImageInputs


def image(i: ImageInputs) -> Prepared:
    """A call of the processor and the cast; it waits for the GPU, so there is no graph of it."""
    assert i.mean_std is not None
    processor = GotOcr2ImageProcessor(
        size={"height": TILE, "width": TILE},
        crop_to_patches=True,
        min_patches=1,
        max_patches=12,
        resample=3,
        image_mean=i.mean_std[0].tolist(),
        image_std=i.mean_std[1].tolist(),
    )
    picture = i.images[0].permute(2, 0, 1).contiguous()

    def call() -> torch.Tensor:
        pixels: torch.Tensor = processor(picture, return_tensors="pt", device="cuda")[
            "pixel_values"
        ]
        return pixels.to(i.dtype)

    return keeping(call, patches, graph=False)
