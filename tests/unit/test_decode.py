"""What pictures look like: orientation, transparency, depth, colour models, and bad files."""

import io
import itertools
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, ImageOps, PngImagePlugin

from lightvl.multimodal.decode import BadPicture, decode_picture, picture_size

MAX_PIXELS = 1_000_000


@pytest.fixture(autouse=True)
def pillow_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders set Pillow's limit for their whole process; this one has other tests to run."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


def decoded(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    width, height = picture_size(data, max_pixels)
    pixels = bytearray(b"\xaa" * (3 * width * height))
    decode_picture(data, memoryview(pixels), width, height, max_pixels)
    return Image.frombytes("RGB", (width, height), bytes(pixels))


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(mode: str, width: int = 23, height: int = 17, seed: int = 0) -> Image.Image:
    rng = random.Random(seed)
    bands = [
        Image.frombytes("L", (width, height), rng.randbytes(width * height))
        for _ in Image.new(mode, (1, 1)).getbands()
    ]
    return Image.merge(mode, bands) if len(bands) > 1 else bands[0].convert(mode)


def on_white(image: Image.Image) -> Image.Image:
    """Exact flattening in integers, rounded to nearest."""
    rgba = image.convert("RGBA")
    flat = Image.new("RGB", image.size)
    for y, x in itertools.product(range(image.height), range(image.width)):
        r, g, b, a = rgba.getpixel((x, y))  # type: ignore[misc]
        flat.putpixel((x, y), tuple((c * a + 255 * (255 - a) + 127) // 255 for c in (r, g, b)))
    return flat


# --- good pictures ---------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format(format: str) -> None:
    data = saved(noise("RGB"), format)
    assert decoded(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        *(("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG")),
        *(("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("I", "TIFF"), ("F", "TIFF"), ("1", "TIFF")),
        ("P", "BMP"),
    ],
)
def test_colour_models_are_converted_as_pillow_does(mode: str, format: str) -> None:
    data = saved(noise("L" if mode in "IFP1" else mode).convert(mode), format)
    assert decoded(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if format in ("PNG", "TIFF") else {"quality": 90}
    data = saved(noise("RGB"), format, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert picture_size(data, MAX_PIXELS) == expected.size
    assert decoded(data).tobytes() == expected.tobytes()
    assert (expected.size == (17, 23)) == (orientation in (5, 6, 7, 8))


def png_with_exif_behind_the_pixels(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + body
    data = saved(noise("RGB"), "PNG")
    end = data.index(b"IEND") - 4
    crc = struct.pack(">I", zlib.crc32(chunk))
    return data[:end] + struct.pack(">I", len(body)) + chunk + crc + data[end:]


def test_a_png_may_tell_its_orientation_behind_the_pixels() -> None:
    data = png_with_exif_behind_the_pixels(6)
    assert picture_size(data, MAX_PIXELS) == (17, 23)
    assert decoded(data).tobytes() == noise("RGB").transpose(Image.Transpose.ROTATE_270).tobytes()


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"", b"II"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_ignored(format: str, exif: bytes) -> None:
    data = saved(noise("RGB"), format, exif=exif)
    assert decoded(data).size == (23, 17)


def test_all_colours_and_alphas_are_rounded_to_nearest() -> None:
    image = Image.merge(
        "RGBA",
        [Image.frombytes("L", (256, 256), bytes(range(256)) * 256)] * 3
        + [Image.frombytes("L", (256, 256), bytes(n for n in range(256) for _ in range(256)))],
    )
    assert decoded(saved(image, "PNG")).tobytes() == on_white(image).tobytes()


@pytest.mark.parametrize(("mode", "format"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "TIFF")])
def test_alpha_is_flattened_on_white(mode: str, format: str) -> None:
    image = noise(mode)
    assert decoded(saved(image, format)).tobytes() == on_white(image).tobytes()


def test_lossless_webp_with_alpha() -> None:
    data = saved(noise("RGBA"), "WEBP", lossless=True, exact=True)
    assert decoded(data).tobytes() == on_white(noise("RGBA")).tobytes()


@pytest.mark.parametrize("transparency", [3, bytes(range(0, 256, 2))])
def test_a_palette_with_transparency(transparency: int | bytes) -> None:
    image = noise("RGB").quantize(128)
    data = saved(image, "PNG", transparency=transparency)
    assert decoded(data).tobytes() == on_white(Image.open(io.BytesIO(data))).tobytes()
    assert decoded(data).tobytes() != image.convert("RGB").tobytes()


def test_a_gif_with_a_transparent_colour() -> None:
    image = noise("RGB").quantize(8)
    data = saved(image, "GIF", transparency=0)
    assert decoded(data).tobytes() == on_white(Image.open(io.BytesIO(data))).tobytes()


def test_a_transparent_grey_value() -> None:
    image = Image.frombytes("L", (4, 1), bytes([7, 8, 9, 8]))
    flat = decoded(saved(image, "PNG", transparency=8))
    assert list(flat.tobytes()) == [7] * 3 + [255] * 3 + [9] * 3 + [255] * 3


def png_16(color_type: int, samples: list[int], width: int, transparent: bytes = b"") -> bytes:
    """A PNG with 16-bit samples, one row, written by hand."""
    row = b"\0" + struct.pack(f">{len(samples)}H", *samples)
    header = struct.pack(">IIBBBBB", width, 1, 16, color_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    if transparent:
        chunks.insert(1, (b"tRNS", transparent))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def test_16_bit_grey_keeps_the_high_byte() -> None:
    flat = decoded(png_16(0, [0x0000, 0x00FF, 0x12FF, 0x8000, 0xFFFF], 5))
    assert list(flat.tobytes()[::3]) == [0, 0, 0x12, 0x80, 0xFF]


def test_16_bit_colour_keeps_the_high_byte() -> None:
    flat = decoded(png_16(2, [0x12FF, 0x3400, 0x56AA, 0xFFFF, 0x00FF, 0x0100], 2))
    assert list(flat.tobytes()) == [0x12, 0x34, 0x56, 0xFF, 0x00, 0x01]


def test_16_bit_grey_compares_the_transparent_value_in_full() -> None:
    flat = decoded(png_16(0, [0x1234, 0x1235, 0x1134], 3, transparent=b"\x12\x34"))
    assert list(flat.tobytes()[::3]) == [255, 0x12, 0x11]


def test_16_bit_colour_with_a_transparent_value() -> None:
    data = png_16(2, [0x1200, 0x3400, 0x5600, 0x1200, 0x3400, 0x5700], 2, b"\x12\0\x34\0\x56\0")
    assert list(decoded(data).tobytes()) == [255, 255, 255, 0x12, 0x34, 0x57]


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_16_bit_tiff(mode: str) -> None:
    samples = [0x0001, 0x1234, 0xFFFE]
    raw = struct.pack(f"{'>' if mode == 'I;16B' else '<'}3H", *samples)
    image = Image.frombytes(mode, (3, 1), raw)
    assert list(decoded(saved(image, "TIFF")).tobytes()[::3]) == [0x00, 0x12, 0xFF]


@pytest.mark.parametrize(("format", "options"), [("GIF", {}), ("WEBP", {"lossless": True})])
def test_only_the_first_frame_counts(format: str, options: dict[str, Any]) -> None:
    frames = [noise("RGB", seed=n) for n in range(3)]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    first = Image.open(io.BytesIO(data)).convert("RGB")
    assert decoded(data).tobytes() == first.tobytes()


def test_an_animated_png_and_a_tiff_of_several_pages() -> None:
    frames = [noise("RGB", seed=n) for n in range(3)]
    for format in ("PNG", "TIFF"):
        data = saved(frames[0], format, save_all=True, append_images=frames[1:])
        assert decoded(data).tobytes() == frames[0].tobytes()


def test_a_jpeg_of_several_pictures() -> None:
    frames = [noise("RGB", seed=n) for n in range(2)]
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert decoded(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_strips_join_without_seams() -> None:
    image = noise("RGB", 1201, 797)
    assert decoded(saved(image, "PNG")).tobytes() == image.tobytes()


# --- bad pictures ----------------------------------------------------------------------------


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(BadPicture) as caught:
        read()
    text = str(caught.value)
    for word in ("PIL", "Pillow", "buffer", "stream", "Error", "0x", "_io"):
        assert word not in text
    return text


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_a_truncated_file_is_an_error(format: str, share: float) -> None:
    options = {"quality": 95} if format in ("JPEG", "WEBP") else {}
    data = saved(noise("RGB", 200, 200), format, **options)
    assert "damaged" in refusal(lambda: decoded(data[: int(len(data) * share)]))


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\0", b"hello, this is no picture", b"\x89PNG\r\n\x1a\n", b"GIF89a"),
        *(b"RIFF\0\0\0\0WEBP", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7"),
        *(b"\xff\xd8\xff\xd9", b"BM" * 9),
    ],
)
def test_what_is_no_picture(data: bytes) -> None:
    assert "damaged" in refusal(lambda: decoded(data))


@pytest.mark.parametrize("format", ["PPM", "TGA", "PCX", "ICO", "ICNS", "SGI", "JPEG2000", "EPS"])
def test_other_formats_are_refused(format: str) -> None:
    data = saved(noise("RGB", 32, 32), format)
    assert "not a JPEG, PNG, WebP, GIF, BMP or TIFF" in refusal(lambda: decoded(data))


def huge_header(format: str) -> bytes:
    """A tiny file that claims 30000 x 30000 pixels."""
    data = bytearray(saved(noise("L", 16, 16), format))
    if format == "PNG":
        data[16:24] = struct.pack(">II", 30000, 30000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif format == "GIF":
        data[6:10] = struct.pack("<HH", 30000, 30000)
    elif format == "BMP":
        data[18:26] = struct.pack("<ii", 30000, 30000)
    elif format == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 30000, 30000)
    return bytes(data)


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "JPEG"])
def test_too_many_pixels_are_refused_by_the_header(format: str) -> None:
    text = refusal(lambda: picture_size(huge_header(format), MAX_PIXELS))
    assert "at most 1 Mpx" in text


def test_a_big_webp_canvas_is_refused_before_it_is_allocated() -> None:
    data = bytearray(saved(noise("RGBA"), "WEBP", lossless=True, exif=b"Exif\0\0x"))
    assert data[12:16] == b"VP8X"
    data[24:30] = struct.pack("<I", 16382)[:3] * 2
    assert "at most 1 Mpx" in refusal(lambda: picture_size(bytes(data), MAX_PIXELS))


@pytest.mark.parametrize(("limit", "fits"), [(391, True), (390, False), (200, False), (195, False)])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_the_limit_of_pixels_is_exact(format: str, limit: int, fits: bool) -> None:
    data = saved(noise("RGB"), format)
    if fits:
        assert picture_size(data, limit) == (23, 17)
    else:
        assert "at most" in refusal(lambda: picture_size(data, limit))


def test_a_decompression_bomb_in_a_text_chunk() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "x" * 50_000_000, zip=True)
    data = saved(noise("RGB"), "PNG", pnginfo=info)
    assert len(data) < 100_000
    assert "damaged" in refusal(lambda: decoded(data))


@pytest.mark.parametrize(("side", "fits"), [(65_535, True), (65_536, False)])
def test_a_side_has_a_limit_of_its_own(side: int, fits: bool) -> None:
    data = saved(Image.new("L", (side, 1)), "PNG")
    if fits:
        assert picture_size(data, MAX_PIXELS) == (side, 1)
        return
    with pytest.raises(BadPicture, match="has 65536x1 pixels, at most 65535 a side"):
        picture_size(data, MAX_PIXELS)


def test_a_png_without_pixels() -> None:
    data = png_16(2, [1, 2, 3], 1)
    without = data[: data.index(b"IDAT") - 4] + data[data.index(b"IEND") - 4 :]
    assert "damaged" in refusal(lambda: decoded(without))


def test_random_damage_never_raises_anything_else() -> None:
    rng = random.Random(1)
    formats = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]
    files = {f: saved(noise("RGB", 60, 40), f, exif=b"Exif\0\0") for f in formats}
    refused = 0
    for turn in range(1200):
        data = bytearray(files[formats[turn % 6]])
        for _ in range(rng.choice([1, 3, 30])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            decoded(bytes(data))
        except BadPicture:
            refused += 1
    assert 100 < refused < 1200
