"""From odd files to tiles: equal to the published pipeline bit for bit before normalisation."""

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps

from lightvl.config import TilingConfig
from lightvl.grid import tile_grid
from lightvl.multimodal.decode import decode_picture, picture_size
from lightvl.ops import image_preprocess

oracle = pytest.importorskip("transformers.models.got_ocr2.image_processing_pil_got_ocr2")

MAX_PIXELS = 20_000_000
PATCH = 14
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(mode: str, width: int, height: int) -> Image.Image:
    """Smooth areas and hard edges, so that rounding and overshoot both matter."""
    rng = random.Random(width * 7919 + height)
    bands = []
    for _ in Image.new(mode, (1, 1)).getbands():
        small = (max(1, width // 9), max(1, height // 9))
        band = Image.frombytes("L", small, rng.randbytes(small[0] * small[1]))
        bands.append(band.resize((width, height), Image.Resampling.NEAREST))
    return Image.merge(mode, bands) if len(bands) > 1 else bands[0]


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def turned(orientation: int, width: int, height: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(noise("RGB", width, height), "JPEG", exif=exif)


def deep_grey(width: int, height: int) -> bytes:
    samples = random.Random(1).randbytes(2 * width * height)
    return saved(Image.frombytes("I;16", (width, height), samples), "PNG")


PICTURES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(noise("RGB", 640, 480), "JPEG"),
    "grey": lambda: saved(noise("L", 333, 500), "PNG"),
    "bits": lambda: saved(noise("L", 300, 211).convert("1"), "PNG"),
    "cmyk": lambda: saved(noise("CMYK", 400, 260), "JPEG"),
    "alpha": lambda: saved(noise("RGBA", 257, 511), "PNG"),
    "grey and alpha": lambda: saved(noise("LA", 257, 100), "PNG"),
    "palette": lambda: saved(noise("RGB", 320, 200).quantize(32), "GIF"),
    "clear palette": lambda: saved(
        noise("RGB", 320, 200).quantize(64), "PNG", transparency=bytes(range(0, 256, 4))
    ),
    "16 bits": lambda: deep_grey(200, 320),
    "turned": lambda: turned(6, 500, 300),
    "mirrored": lambda: turned(5, 320, 480),
    "webp": lambda: saved(noise("RGBA", 500, 300), "WEBP"),
    "bmp": lambda: saved(noise("RGB", 101, 103), "BMP"),
    "tiff": lambda: saved(noise("RGB", 101, 303), "TIFF", compression="tiff_lzw"),
    "one pixel": lambda: saved(noise("RGB", 1, 1), "PNG"),
    "one row": lambda: saved(noise("RGB", 3000, 1), "PNG"),
    "one column": lambda: saved(noise("RGB", 2, 1777), "PNG"),
    "a tile": lambda: saved(noise("RGB", 448, 448), "PNG"),
    "twelve tiles": lambda: saved(noise("RGB", 1792, 1344), "PNG"),
    "a photograph's size": lambda: saved(noise("RGB", 4000, 3000), "JPEG"),
}


def published_tiles(data: bytes, tiling: TilingConfig) -> npt.NDArray[np.float32]:
    """What transformers' processor makes of what Pillow reads, flattened on white in float64."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode == "I;16":
        high = np.asarray(image) >> 8
        image = Image.fromarray(high.astype(np.uint8))
    elif image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
        alpha = rgba[..., 3:] / 255
        flat = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha))
        image = Image.fromarray(flat.astype(np.uint8))
    processor = oracle.GotOcr2ImageProcessorPil(
        crop_to_patches=True,
        min_patches=tiling.min_tiles,
        max_patches=tiling.max_tiles,
        size={"height": tiling.tile_size, "width": tiling.tile_size},
        image_mean=list(tiling.mean),
        image_std=list(tiling.std),
    )
    values = processor(image.convert("RGB"), return_tensors="np")["pixel_values"]
    return np.asarray(values, dtype=np.float32)


def our_tiles(data: bytes, tiling: TilingConfig, dtype: torch.dtype) -> npt.NDArray[Any]:
    """[tiles, 3, side, side], as the server computes them."""
    width, height = picture_size(data, MAX_PIXELS)
    room = bytearray(3 * width * height)
    decode_picture(data, memoryview(room), width, height, MAX_PIXELS)
    pixels = torch.frombuffer(room, dtype=torch.uint8).reshape(height, width, 3)
    grid = tile_grid(width, height, tiling)
    grids = torch.tensor([[grid.cols, grid.rows, grid.thumbnail]], dtype=torch.int32)
    mean_std = None if dtype == torch.uint8 else torch.tensor([tiling.mean, tiling.std])
    patches = image_preprocess([pixels], grids, tiling.tile_size, PATCH, mean_std, dtype)
    count = tiling.tile_size // PATCH
    tiles = patches.reshape(-1, count, count, 3, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(-1, 3, tiling.tile_size, tiling.tile_size).numpy()


@pytest.mark.parametrize("tile_size", [448, 224])
@pytest.mark.parametrize("name", PICTURES)
def test_tiles_are_those_of_the_published_pipeline(name: str, tile_size: int) -> None:
    tiling = TilingConfig(
        tile_size=tile_size,
        tokens_per_tile=64,
        min_tiles=1,
        max_tiles=12,
        use_thumbnail=True,
        mean=MEAN,
        std=STD,
    )
    data = PICTURES[name]()
    published = published_tiles(data, tiling)
    mean, std = (np.array(v, np.float64).reshape(3, 1, 1) for v in (MEAN, STD))
    as_bytes = np.rint((published * std + mean) * 255).astype(np.uint8)
    raw = our_tiles(data, tiling, torch.uint8)
    assert raw.shape == as_bytes.shape
    assert np.array_equal(raw, as_bytes)
    normalised = our_tiles(data, tiling, torch.float32)
    assert np.abs(normalised - published).max() < 2e-6
