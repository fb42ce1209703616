"""From a picture's bytes to its size and to RGB pixels; runs in media workers.

Pillow does the decoding. What a picture looks like is fixed here: EXIF orientation applied,
transparency flattened on white, 16-bit samples cut to their high byte, everything else as
`Image.convert("RGB")`, colour profiles ignored, the first frame of animations.
"""

import io
import struct
import warnings

import PIL.ImageCms  # Pillow imports it at the first LAB picture otherwise
import PIL.MpoImagePlugin  # noqa: F401 (JPEG's plugin imports it at the first such picture)
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageChops,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from PIL.Image import Transpose

FORMATS = [
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
    )
]
"""Pillow's names; their plugins are imported so that no file is opened once pictures come in."""

Image.preinit()  # would import more at the first picture

MAX_SIDE = 65_535
"""JPEG's own limit; a resize needs weights for every pixel along a side."""

_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_SWAPPED = {Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90}
_STRIP_BYTES = 1 << 20


class BadPicture(Exception):
    """A picture can't be used; the text is for the client, as a clause without a subject."""


def picture_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Reads a picture's header; decodes nothing.

    Returns:
        Width and height after EXIF orientation.

    Raises:
        BadPicture: Its format isn't supported, or it has too many pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open(data, max_pixels)
        return _turned_size(image, _orientation(image, data))


def decode_picture(
    data: bytes, pixels: memoryview, width: int, height: int, max_pixels: int
) -> None:
    """Decodes a picture.

    Args:
        data: The file.
        pixels: Gets RGB uint8 [height, width, 3].
        width: As `picture_size` said.
        height: As `picture_size` said.
        max_pixels: As for `picture_size`.

    Raises:
        BadPicture: It is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open(data, max_pixels)
        turn = _orientation(image, data)
        rgb = _to_rgb(image)
    if turn is not None:
        rgb = rgb.transpose(turn)
    if rgb.size != (width, height):
        raise BadPicture("is damaged: its header and its pixels disagree")
    _write(rgb, pixels)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    Image.MAX_IMAGE_PIXELS = max_pixels  # some plugins look before they allocate
    limit = f"at most {max_pixels / 1e6:g} Mpx are allowed"
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
    except Image.DecompressionBombError:
        raise BadPicture(f"has too many pixels, {limit}") from None
    except UnidentifiedImageError:
        raise BadPicture("is damaged or not a JPEG, PNG, WebP, GIF, BMP or TIFF picture") from None
    except Exception:
        raise BadPicture("has a damaged header") from None
    if width < 1 or height < 1:
        raise BadPicture("has no pixels")
    if width * height > max_pixels:
        raise BadPicture(f"has {width}x{height} pixels, {limit}")
    if max(width, height) > MAX_SIDE:
        raise BadPicture(f"has {width}x{height} pixels, at most {MAX_SIDE} a side are allowed")
    return image


def _orientation(image: Image.Image, data: bytes) -> Transpose | None:
    """Returns how the decoded picture must be turned; looks at metadata only."""
    if image.format == "TIFF":
        return None  # its plugin turns it
    try:
        if image.format == "PNG":
            if "exif" not in image.info and (exif := _png_exif(data)) is not None:
                image.info["exif"] = exif
            value = Image.Image.getexif(image).get(_ORIENTATION)  # PNG's own would decode
        else:
            value = image.getexif().get(_ORIENTATION)
        return _TRANSPOSE.get(value) if value is not None else None
    except Exception:
        return None


def _png_exif(data: bytes) -> bytes | None:
    """Finds the `eXIf` chunk, which may also come behind the pixels (PNG 1.5 extensions, 3.7)."""
    at = len(b"\x89PNG\r\n\x1a\n")
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            return data[at + 8 : at + 8 + length]
        at += 12 + length
    return None


def _turned_size(image: Image.Image, turn: Transpose | None) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if turn in _SWAPPED else (width, height)


def _to_rgb(image: Image.Image) -> Image.Image:
    try:
        deep = isinstance(image, PngImagePlugin.PngImageFile) and image.tile[0].args == "RGB;16B"
        image.load()
        if deep and "transparency" in image.info:
            image.info["transparency"] = tuple(v >> 8 for v in image.info["transparency"])
        if image.mode.startswith("I;16"):
            return _from_16_bits(image)
        if image.has_transparency_data:
            return _on_white(image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except Image.DecompressionBombError:
        raise BadPicture("has too many pixels") from None
    except (ValueError, KeyError):
        raise BadPicture("is damaged or of an unsupported kind") from None
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        raise BadPicture("is damaged or cut short") from None


def _on_white(image: Image.Image) -> Image.Image:
    """Flattens transparency; `paste` rounds colour x alpha + 255 x (1 - alpha) to nearest."""
    rgba = image.convert("RGBA")
    return _paste_on_white(rgba.convert("RGB"), rgba.getchannel("A"))


def _paste_on_white(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    flat = Image.new("RGB", rgb.size, (255, 255, 255))
    flat.paste(rgb, mask=alpha)
    return flat


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Keeps the high bytes of 16-bit grey; a transparent value is compared in full."""
    samples = image.tobytes("raw", "I;16B")
    high = Image.frombytes("L", image.size, samples[0::2])
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return high.convert("RGB")
    low = Image.frombytes("L", image.size, samples[1::2])
    clear = ImageChops.darker(_where(high, key >> 8), _where(low, key & 255))
    return _paste_on_white(high.convert("RGB"), ImageChops.invert(clear))


def _where(image: Image.Image, value: int) -> Image.Image:
    return image.point([255 if v == value else 0 for v in range(256)])


def _write(rgb: Image.Image, pixels: memoryview) -> None:
    """Copies by strips, so that no second copy of the whole picture is made."""
    width, height = rgb.size
    num_rows = max(1, _STRIP_BYTES // (3 * width))
    for top in range(0, height, num_rows):
        bottom = min(top + num_rows, height)
        strip = rgb.crop((0, top, width, bottom)).tobytes()
        pixels[3 * width * top : 3 * width * bottom] = strip
