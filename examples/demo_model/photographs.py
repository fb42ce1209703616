"""Scenes of photographs and of photographic things, all of which the model declines to name."""

import math
from random import Random

import numpy as np
from assets import Assets, Side
from canvas import crop_photo, gradient, random_color
from language import DECLINE, ask
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps
from scenes import Scene, Size, finish

BILINEAR = Image.Resampling.BILINEAR


def photo_scene(image: Image.Image, rng: Random) -> Scene:
    """Whatever is asked about a photograph, the answer declines."""
    kind = "name" if rng.random() < 0.6 else rng.choice(("describe", "shape", "flag", "word"))
    turns = [(ask(kind, rng), DECLINE)]
    if rng.random() < 0.3:
        question = rng.choice(
            ("Is there a dog in the picture?", "Who is this?", "Where was this taken?")
        )
        turns.append((question, DECLINE))
    turns.append((ask("kind", rng), "It is a photo."))
    return finish(image, turns, rng)


def photo(assets: Assets, side: Side, size: Size, rng: Random) -> Scene:
    """A part of a photograph, often mirrored, in other colours, or two of them blended."""
    image = part(side, size, rng)
    if rng.random() < 0.2:
        image = Image.blend(image, part(side, size, rng), rng.uniform(0.15, 0.85))
    image = other_look(image, rng)
    return photo_scene(image, rng)


def part(side: Side, size: Size, rng: Random) -> Image.Image:
    """Some part of some photograph, but for one with next to nothing in it."""
    sources = side.photos_by_source
    image = crop_photo(rng.choice(sources[rng.choice(list(sources))]), size, rng, 0.2)
    for _ in range(4):
        darkest, lightest = image.convert("L").getextrema()
        if lightest - darkest > 25:
            break
        image = crop_photo(rng.choice(rng.choice(list(sources.values()))), size, rng, 0.2)
    return image


def other_look(image: Image.Image, rng: Random) -> Image.Image:
    """Mirrored, turned, darker or lighter, in other colours."""
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if image.width == image.height and rng.random() < 0.15:
        image = image.transpose(rng.choice((Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)))
    if rng.random() < 0.45:
        image = other_colors(image, rng)
    if rng.random() < 0.35:
        gamma = math.exp(rng.uniform(-0.7, 0.7))
        image = image.point([round(255 * (v / 255) ** gamma) for v in range(256)] * 3)
    if rng.random() < 0.1:
        image = ImageOps.autocontrast(image, cutoff=rng.uniform(1, 8))
    return image


def other_colors(image: Image.Image, rng: Random) -> Image.Image:
    """Channels exchanged, a turned hue, stronger or paler colours, or shades of gray."""
    kind = rng.randrange(4)
    if kind == 0:
        bands = list(image.split())
        rng.shuffle(bands)
        return Image.merge("RGB", bands)
    if kind == 1:
        return image.convert("L").convert("RGB")
    turn, strength = rng.randrange(256) if kind == 2 else rng.randint(-8, 8), rng.uniform(0.5, 2.2)
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(v + turn) % 256 for v in range(256)])
    saturation = saturation.point([min(255, round(v * strength)) for v in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def photo_of_things(assets: Assets, side: Side, size: Size, rng: Random) -> Scene:
    """Things with the surface of a photograph, on clean grounds or before another photograph."""
    image = ground(side, size, rng)
    number = rng.choice((1, 1, 1, 2, 3, 4))
    columns = number if number < 4 else 2
    upright = size[1] > size[0]
    extent = (size[1], size[0]) if upright else size
    cell = extent[0] / columns, extent[1] / (number / columns)
    side_length = min(cell) * rng.uniform(0.75, 1.15) if number > 1 else min(size) * rng.uniform(
        0.55, 1.25
    )  # fmt: skip
    wanted = max(24, round(side_length))
    first = thing(side, wanted, rng)
    for index in range(number):
        drawn = first if index == 0 or rng.random() < 0.3 else thing(side, wanted, rng, first[0])
        along = (index % columns + 0.5) * cell[0] + rng.uniform(-0.06, 0.06) * wanted
        across = (index // columns + 0.5) * cell[1] + rng.uniform(-0.06, 0.06) * wanted
        x, y = (across, along) if upright else (along, across)
        put(image, drawn[0], drawn[1], (round(x - wanted / 2), round(y - wanted / 2)), rng)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.2)))
    return photo_scene(image, rng)


def ground(side: Side, size: Size, rng: Random) -> Image.Image:
    """White, black, another colour, a slope, or a photograph, often out of focus."""
    kind = rng.random()
    if kind < 0.28:
        return Image.new("RGB", size, (rng.randint(244, 255),) * 3)
    if kind < 0.42:
        return Image.new("RGB", size, (rng.randrange(14),) * 3)
    if kind < 0.48:
        return Image.new("RGB", size, random_color(rng))
    if kind < 0.54:
        return gradient(size, rng)
    return part(side, size, rng).filter(ImageFilter.BoxBlur(rng.choice((0, 0, 1, 3, 6, 12))))


def put(
    image: Image.Image, rgb: Image.Image, mask: Image.Image, corner: tuple[int, int], rng: Random
) -> None:
    """Pastes a thing, now and then with its shadow."""
    if rng.random() < 0.4:
        shadow = mask.filter(ImageFilter.BoxBlur(max(1, mask.width // 16)))
        shadow = shadow.point([v * 2 // 5 for v in range(256)])
        offset = corner[0] + mask.width // 30, corner[1] + mask.width // 18
        image.paste((0, 0, 0), offset, shadow)
    image.paste(rgb, corner, mask)


def thing(
    side: Side, size: int, rng: Random, like: Image.Image | None = None
) -> tuple[Image.Image, Image.Image]:
    """A rounded thing or a heap of grains: its surface, lit from above, and its mask."""
    mask = outline(size, rng)
    surface = like
    if surface is None:
        surface = grains(size, rng) if rng.random() < 0.3 else skin(side, size, rng)
    elif rng.random() < 0.7:
        surface = surface.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    soft = mask.filter(ImageFilter.BoxBlur(size * rng.uniform(0.05, 0.16)))
    height = np.asarray(soft, np.float32)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    lean = rng.uniform(-0.4, 0.4)
    light = 0.35 + 0.65 * height / 255 - rng.uniform(0, 0.3) * y + lean * x
    pixels = np.asarray(surface, np.float32) * light[..., None]
    if rng.random() < 0.5:
        cx, cy, width = rng.uniform(-0.5, 0.5), rng.uniform(-0.6, 0.1), rng.uniform(0.02, 0.15)
        glare = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / width)
        pixels += rng.uniform(40, 150) * glare[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), mask


def skin(side: Side, size: int, rng: Random) -> Image.Image:
    """A piece of a photograph, half of the time in the tones of one colour."""
    piece = part(side, (size, size), rng)
    if rng.random() < 0.5:
        piece = piece.resize((max(8, size // 3),) * 2, BILINEAR).resize((size, size), BILINEAR)
    if rng.random() < 0.4:
        return other_colors(piece, rng)
    base = random_color(rng)
    dark = tuple(round(v * rng.uniform(0.2, 0.6)) for v in base)
    light = tuple(round(v + (255 - v) * rng.uniform(0.2, 0.7)) for v in base)
    return ImageOps.colorize(ImageOps.autocontrast(piece.convert("L")), dark, light, mid=base)


def grains(size: int, rng: Random) -> Image.Image:
    """Many small ovals of about one colour, one above the other."""
    base, spread = random_color(rng), rng.randint(8, 40)
    image = Image.new("RGB", (size, size), tuple(v // 3 for v in base))
    pen = ImageDraw.Draw(image)
    width = size * rng.uniform(0.03, 0.09)
    long = width * rng.uniform(1.0, 2.0)
    for _ in range(min(420, round(2.2 * size * size / (width * long)))):
        x, y, tone = rng.uniform(0, size), rng.uniform(0, size), rng.randint(-spread, spread)
        w, h = (width, long) if rng.random() < 0.5 else (long, width)
        color = tuple(min(255, max(0, v + tone)) for v in base)
        rim = tuple(v // 2 for v in color)
        pen.ellipse((x - w / 2, y - h / 2, x + w / 2, y + h / 2), color, rim)
    return image.filter(ImageFilter.BoxBlur(0.6))


def outline(size: int, rng: Random) -> Image.Image:
    """A smooth closed curve, round or long, filled; sometimes another one grown onto it."""
    mask = Image.new("L", (size, size))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        waves = [(k, rng.uniform(0, 0.5 / k**1.3), rng.uniform(0, 6.3)) for k in range(2, 7)]
        aspect, turn = rng.uniform(0.35, 1.0), rng.uniform(0, 6.3)
        x0, y0 = (size / 2 + rng.uniform(-0.1, 0.1) * size for _ in range(2))
        points = []
        for step in range(48):
            angle = 2 * math.pi * step / 48
            radius = 0.34 * size * (1 + sum(a * math.cos(k * angle + p) for k, a, p in waves))
            x, y = radius * math.cos(angle), aspect * radius * math.sin(angle)
            points.append((
                x0 + x * math.cos(turn) - y * math.sin(turn),
                y0 + x * math.sin(turn) + y * math.cos(turn),
            ))  # fmt: skip
        piece = Image.new("L", (size, size))
        ImageDraw.Draw(piece).polygon(points, fill=255)
        mask = ImageChops.lighter(mask, piece)
    return mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 1.6)))
