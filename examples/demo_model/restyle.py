"""Draws a sprite in another manner, so that a concept is learnt whatever its style."""

from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

COLOR_WORDS = {
    *("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"),
    *("gray", "grey", "light", "rainbow", "hot", "cold"),
}
BILINEAR = Image.Resampling.BILINEAR


def restyle(image: Image.Image, name: str, rng: Random) -> Image.Image:
    """Other colours, form and manner of a drawing; a colour that its name tells is kept.

    Args:
        image: RGBA sprite.
        name: What it shows.
        rng: Source of every choice.
    """
    colored = not COLOR_WORDS.isdisjoint(name.replace("-", " ").split())
    rgb, alpha = image.convert("RGB"), image.getchannel("A")
    if rng.random() < 0.6:
        rgb = recolored(rgb, 3 if colored else 20, rng)
    manner = rng.random()
    if manner < 0.2:
        rgb = flattened(rgb, rng)
    elif manner < 0.42:
        rgb = shaded(rgb, alpha, rng)
    elif manner < 0.54:
        rgb, alpha = outlined(rgb, alpha, rng)
    elif manner < 0.6:
        rgb = rgb.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 1.6)))
    elif manner < 0.72 and not colored:
        rgb = two_tone(rgb, rng)
    rgb.putalpha(alpha)
    if rng.random() < 0.5:
        rgb = warped(rgb, rng)
    if rng.random() < 0.08:
        rgb = bitten(rgb, rng)
    return rgb


def recolored(rgb: Image.Image, most_turn: int, rng: Random) -> Image.Image:
    """The hue turned by up to `most_turn` of 256, other saturation, another gamma."""
    turn = rng.randint(-most_turn, most_turn)
    strength, gamma = rng.uniform(0.4, 1.7), rng.uniform(0.6, 1.5)
    hue, saturation, value = rgb.convert("HSV").split()
    hue = hue.point([(v + turn) % 256 for v in range(256)])
    saturation = saturation.point([min(255, round(v * strength)) for v in range(256)])
    value = value.point([round(255 * (v / 255) ** gamma) for v in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def flattened(rgb: Image.Image, rng: Random) -> Image.Image:
    """A few plain colours."""
    soft = rgb.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 2.0)))
    return soft.quantize(rng.randint(4, 12), Image.Quantize.FASTOCTREE).convert("RGB")


def shaded(rgb: Image.Image, alpha: Image.Image, rng: Random) -> Image.Image:
    """Light from one side: rounded edges and a slope over the whole."""
    soft = alpha.filter(ImageFilter.BoxBlur(rng.uniform(4, 14)))
    step = rng.choice(((3, 4), (-3, 4), (0, 5)))
    here, there = (np.asarray(ImageChops.offset(soft, s * step[0], s * step[1]), np.float32)
                   for s in (1, -1))  # fmt: skip
    rows = np.linspace(rng.uniform(0, 0.35), -rng.uniform(0, 0.35), rgb.height, dtype=np.float32)
    light = 1 + rng.uniform(0.8, 3.0) * (here - there) / 255 + rows[:, None]
    pixels = np.asarray(rgb, np.float32) * light[..., None]
    if rng.random() < 0.5:
        pixels += 60 * np.clip(light - 1.1, 0, 1)[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def outlined(rgb: Image.Image, alpha: Image.Image, rng: Random) -> tuple[Image.Image, Image.Image]:
    """A dark or white line around the drawing, sometimes along its inner edges too."""
    ink = (255, 255, 255) if rng.random() < 0.2 else (rng.randrange(60),) * 3
    room = ImageOps.expand(alpha.resize((116, 116), BILINEAR), 6)
    inner = ImageOps.expand(rgb.resize((116, 116), BILINEAR), 6)
    wide = room.filter(ImageFilter.GaussianBlur(rng.uniform(1.2, 3.0)))
    wide = wide.point([min(255, v * 6) for v in range(256)])
    if rng.random() < 0.4:
        edges = inner.convert("L").filter(ImageFilter.FIND_EDGES)
        edges = edges.point([min(255, max(0, 4 * (v - 30))) for v in range(256)])
        inner.paste(ink, (0, 0), edges)
        if rng.random() < 0.4:
            pale = Image.new("RGB", inner.size, (245, 245, 245))
            inner = Image.composite(Image.new("RGB", inner.size, ink), pale, edges)
    return Image.composite(inner, Image.new("RGB", inner.size, ink), room), wide


def two_tone(rgb: Image.Image, rng: Random) -> Image.Image:
    """From one colour to another by lightness alone; sometimes shades of gray."""
    gray = rgb.convert("L")
    if rng.random() < 0.5:
        return gray.convert("RGB")
    dark = tuple(rng.randrange(110) for _ in range(3))
    light = tuple(rng.randrange(170, 256) for _ in range(3))
    return ImageOps.colorize(ImageOps.autocontrast(gray), dark, light)


def warped(image: Image.Image, rng: Random) -> Image.Image:
    """Its corners moved a little, mirrored never: some things have a left and a right."""
    size = image.width
    slack = [rng.uniform(-0.1, 0.1) * size for _ in range(8)]
    corners = (0, 0, 0, size, size, size, size, 0)
    moved = [c + s for c, s in zip(corners, slack, strict=True)]
    return image.transform(image.size, Image.Transform.QUAD, moved, BILINEAR)


def bitten(image: Image.Image, rng: Random) -> Image.Image:
    """A round piece of it missing near the rim."""
    alpha, size = image.getchannel("A"), image.width
    radius = rng.uniform(0.1, 0.22) * size
    x, y = rng.choice((rng.uniform(0, 0.25), rng.uniform(0.75, 1))) * size, rng.uniform(0, size)
    ImageDraw.Draw(alpha).ellipse((x - radius, y - radius, x + radius, y + radius), fill=0)
    image.putalpha(alpha)
    return image
