"""Draws the picture that the examples ask about: `python examples/draw_face.py [FILE]`."""

import sys
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 256
YELLOW, BROWN = (255, 210, 50), (80, 50, 0)


def face() -> Image.Image:
    """Returns a smiling face on white."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((28, 28, 228, 228), fill=YELLOW)
    draw.ellipse((85, 90, 110, 125), fill=BROWN)
    draw.ellipse((146, 90, 171, 125), fill=BROWN)
    draw.arc((80, 100, 176, 190), 20, 160, fill=BROWN, width=9)
    return picture


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("face.png")
    face().save(target, optimize=True)
