"""Canvases: sizes, backgrounds, pasting, wear and tear, and the published tiling."""

import io
import math
from random import Random

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

Rgb = tuple[int, int, int]
TILE = 224
MAX_TILES = 4
SIDES = range(1, MAX_TILES + 1)
GRIDS = sorted(
    ((i, j) for i in SIDES for j in SIDES if i * j <= MAX_TILES), key=lambda g: g[0] * g[1]
)
PALETTE: dict[str, tuple[Rgb, ...]] = {
    "red": ((220, 20, 30), (255, 0, 0), (190, 15, 25), (235, 55, 50)),
    "orange": ((255, 140, 0), (245, 125, 20), (255, 160, 30)),
    "yellow": ((255, 225, 0), (250, 235, 50), (255, 255, 0)),
    "green": ((0, 150, 40), (30, 180, 70), (0, 128, 0), (60, 200, 60), (0, 255, 0)),
    "blue": ((20, 60, 220), (0, 0, 255), (30, 110, 230), (10, 40, 150)),
    "purple": ((130, 30, 170), (128, 0, 128), (150, 70, 200)),
    "pink": ((255, 130, 190), (255, 105, 180), (250, 160, 200)),
    "brown": ((130, 75, 25), (101, 60, 20), (150, 95, 45)),
    "black": ((0, 0, 0), (15, 15, 18)),
    "white": ((255, 255, 255), (246, 246, 246)),
    "gray": ((128, 128, 128), (110, 112, 115), (150, 150, 150)),
}
COLORS = tuple(PALETTE)


def shade(name: str, rng: Random) -> Rgb:
    """A colour that everyone would call by that name."""
    base = rng.choice(PALETTE[name])
    return tuple(min(255, max(0, v + rng.randint(-7, 7))) for v in base)


def pick_size(num_tiles: int, rng: Random) -> tuple[int, int]:
    """A width and height that the tiling cuts into `num_tiles` tiles (thumbnail included)."""
    while True:
        size = propose_size(num_tiles, rng)
        columns, rows = tile_grid(*size)
        if columns * rows + (columns * rows > 1) == num_tiles:
            return size


def propose_size(num_tiles: int, rng: Random) -> tuple[int, int]:
    """A size that probably has `num_tiles` tiles."""
    if num_tiles == 1:
        if rng.random() < 0.5:
            return TILE, TILE
        return fit_area(rng.randint(96, 300) ** 2, math.exp(rng.uniform(-0.28, 0.4)))
    if num_tiles == 5 and rng.random() > 0.06:
        return fit_area(
            rng.randint(318, 600 if rng.random() < 0.4 else 420) ** 2,
            math.exp(rng.uniform(-0.28, 0.4)),
        )
    low, high, largest = {3: (1.4, 2.5, 480), 4: (2.4, 3.5, 420), 5: (3.5, 5.0, 400)}[num_tiles]
    aspect = rng.uniform(low, high)
    return fit_area(rng.randint(160, largest) ** 2, aspect if rng.random() < 0.6 else 1 / aspect)


def fit_area(area: float, aspect: float) -> tuple[int, int]:
    """Width and height of about this area (pixels) and aspect."""
    height = math.sqrt(area / aspect)
    return max(32, round(height * aspect)), max(32, round(height))


def tile_grid(width: int, height: int) -> tuple[int, int]:
    """Columns and rows by the rule published with InternVL."""
    ratio, best, least = width / height, (1, 1), math.inf
    for columns, rows in GRIDS:
        difference = abs(ratio - columns / rows)
        roomy = width * height > 0.5 * TILE * TILE * columns * rows
        if difference < least or (difference == least and roomy):
            best, least = (columns, rows), difference
    return best


def cut_tiles(image: Image.Image) -> np.ndarray:
    """The tiles, row by row, and the thumbnail last when there are several: uint8 [N, S, S, 3]."""
    columns, rows = tile_grid(*image.size)
    whole = image.resize((columns * TILE, rows * TILE), Image.Resampling.BICUBIC)
    grid = np.asarray(whole).reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2)
    tiles = grid.reshape(-1, TILE, TILE, 3)
    if columns * rows == 1:
        return tiles
    thumbnail = np.asarray(image.resize((TILE, TILE), Image.Resampling.BICUBIC))
    return np.concatenate([tiles, thumbnail[None]])


def gradient(size: tuple[int, int], rng: Random) -> Image.Image:
    """Two to four colours blended smoothly across the canvas."""
    small = np.array([[random_color(rng) for _ in range(2)] for _ in range(2)], dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BILINEAR)


def pattern(size: tuple[int, int], rng: Random) -> Image.Image:
    """Stripes or a checkerboard in two similar or different colours."""
    first = np.array(random_color(rng))
    spread = rng.choice((20, 60))
    second = np.clip(first + [rng.randint(-spread, spread) for _ in range(3)], 0, 255)
    w, h = size
    period = rng.randint(6, 40)
    x, y = np.arange(w) // period, np.arange(h)[:, None] // period
    kind = rng.randrange(3)
    which = (x + 0 * y if kind == 0 else y + 0 * x if kind == 1 else x + y) % 2
    return Image.fromarray(np.where(which[..., None], first, second).astype(np.uint8))


def blotches(size: tuple[int, int], rng: Random) -> Image.Image:
    """Soft random colour clouds."""
    n = rng.choice((3, 6, 12))
    noise = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (n, n, 3), dtype=np.uint8)
    strength = rng.uniform(0.1, 0.8)
    flat = np.array(random_color(rng)) * (1 - strength)
    mixed = (noise * strength + flat).astype(np.uint8)
    return Image.fromarray(mixed).resize(size, Image.Resampling.BICUBIC)


def random_color(rng: Random) -> Rgb:
    """Any colour at all."""
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def crop_photo(
    photo: Image.Image, size: tuple[int, int], rng: Random, least: float = 0.35
) -> Image.Image:
    """A random part of a photograph, stretched to `size` by at most about a third.

    The part is as large as fits times `least` to 1.
    """
    aspect = size[0] / size[1] * math.exp(rng.uniform(-0.25, 0.25))
    scale = rng.uniform(least, 1.0)
    w = min(photo.width, photo.height * aspect) * scale
    h = w / aspect
    x, y = rng.uniform(0, photo.width - w), rng.uniform(0, photo.height - h)
    box = (x, y, x + w, y + h)
    return photo.resize(size, Image.Resampling.BILINEAR, box=box)


def background(
    size: tuple[int, int], rng: Random, photos: list[tuple[str, Image.Image]]
) -> Image.Image:
    """A ground for drawings: mostly plain, sometimes busy."""
    kind = rng.random()
    if kind < 0.38:
        return Image.new("RGB", size, "white")
    if kind < 0.60:
        return Image.new("RGB", size, random_color(rng))
    if kind < 0.66:
        return Image.new("RGB", size, (rng.randrange(40),) * 3)
    if kind < 0.76:
        return gradient(size, rng)
    if kind < 0.82:
        return pattern(size, rng)
    if kind < 0.90:
        return blotches(size, rng)
    photo = crop_photo(rng.choice(photos)[1], size, rng)
    if rng.random() < 0.6:
        photo = photo.filter(ImageFilter.BoxBlur(rng.randint(1, 6)))
    return photo


def paste_sprite(
    canvas: Image.Image, sprite: Image.Image, center: tuple[float, float], side: int, angle: float
) -> None:
    """Pastes a square sprite, `side` pixels wide, turned by `angle` degrees."""
    if angle:
        sprite = sprite.rotate(angle, Image.Resampling.BILINEAR, expand=True)
        side = round(side * sprite.width / 128)
    sprite = sprite.resize((side, side), Image.Resampling.BILINEAR)
    corner = (round(center[0] - side / 2), round(center[1] - side / 2))
    canvas.paste(sprite, corner, sprite)


def wear(image: Image.Image, rng: Random) -> Image.Image:
    """Now and then: JPEG, blur, noise, other light."""
    if rng.random() < 0.08:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
    if rng.random() < 0.1:
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.25))
    if rng.random() < 0.1:
        image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.7, 1.2))
    if rng.random() < 0.08:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(
            0, rng.uniform(2, 14), (image.height, image.width, 1)
        )
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=rng.randint(35, 95))
        image = Image.open(data)
        image.load()
    return image
