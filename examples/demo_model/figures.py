"""Scenes of geometric figures, numbers of things, and written words."""

import math
from collections.abc import Callable
from random import Random

from assets import Assets, Side
from canvas import COLORS, Rgb, background, paste_sprite, random_color, shade
from language import ask, join, plural, with_article
from PIL import Image, ImageDraw
from scenes import Scene, Size, Turn, any_style, finish

Point = tuple[float, float]
COUNT_WEIGHTS = (4, 4, 6, 9, 11, 13, 13, 13, 11)
ZONES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)


def polygon(corners: int, turn: float = 0.0, inner: float = 1.0) -> Callable[[], list[Point]]:
    """Corners on the unit circle from the top; `inner` below 1 makes a star."""

    def points() -> list[Point]:
        number = corners if inner == 1.0 else 2 * corners
        angles = (2 * math.pi * i / number - math.pi / 2 + turn for i in range(number))
        radii = (inner if i % 2 and inner < 1 else 1.0 for i in range(number))
        return [(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]

    return points


def heart() -> list[Point]:
    """The usual heart curve."""
    steps = [2 * math.pi * i / 40 for i in range(40)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in steps
    ]


def ellipse(ratio: float) -> Callable[[], list[Point]]:
    """An ellipse whose height is `ratio` of its width."""
    return lambda: [
        (math.cos(2 * math.pi * i / 48), ratio * math.sin(2 * math.pi * i / 48)) for i in range(48)
    ]


SHAPES: dict[str, Callable[[], list[Point]]] = {
    "circle": ellipse(1.0),
    "square": lambda: [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "rectangle": lambda: [(-1, -0.42), (1, -0.42), (1, 0.42), (-1, 0.42)],
    "triangle": polygon(3),
    "star": polygon(5, inner=0.42),
    "pentagon": polygon(5),
    "hexagon": polygon(6),
    "diamond": lambda: [(0, -1), (0.62, 0), (0, 1), (-0.62, 0)],
    "heart": heart,
    "cross": lambda: [
        *((-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)),
        *((0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)),
    ],
}
SHAPE_NAMES = tuple(SHAPES)


def draw_shape(
    image: Image.Image, shape: str, color: Rgb, center: Point, radius: float, rng: Random
) -> None:
    """Fills a figure with smooth edges; sometimes with an outline or as a thick outline only."""
    upright = shape == "rectangle" and rng.random() < 0.4
    angle = rng.uniform(-0.2, 0.2) if rng.random() < 0.5 else 0.0
    angle += math.pi / 2 if upright else 0.0
    c, s = math.cos(angle), math.sin(angle)
    size = max(8, math.ceil(2.4 * radius))
    scale = 3 if size < 130 else 2
    mid = size * scale / 2
    points = [
        (mid + radius * scale * (x * c - y * s), mid + radius * scale * (x * s + y * c))
        for x, y in SHAPES[shape]()
    ]
    mask = Image.new("L", (size * scale, size * scale))
    pen = ImageDraw.Draw(mask)
    if rng.random() < 0.12 and radius > 22:
        width = round(scale * radius * rng.uniform(0.14, 0.25))
        pen.line([*points, points[0], points[1]], fill=255, width=width, joint="curve")
    else:
        pen.polygon(points, fill=255)
    mask = mask.reduce(scale)
    corner = (round(center[0] - size / 2), round(center[1] - size / 2))
    image.paste(color, corner, mask)


def plain_ground(
    size: Size, rng: Random, away_from: list[Rgb], side: Side
) -> tuple[Image.Image, str | None]:
    """A ground that every given colour stands out from, and its colour's name if it has one."""
    light = [sum(color) for color in away_from]
    if rng.random() < 0.15 and (max(light) < 330 or min(light) > 430):
        return busy_ground(size, rng, max(light) < 330, side), None
    for _ in range(30):
        name = "white" if rng.random() < 0.4 else rng.choice(COLORS)
        color = (255, 255, 255) if name == "white" and rng.random() < 0.7 else shade(name, rng)
        if nearest(color, away_from) > 110:
            return Image.new("RGB", size, color), name
    color = max((random_color(rng) for _ in range(60)), key=lambda c: nearest(c, away_from))
    return Image.new("RGB", size, color), None


def nearest(color: Rgb, others: list[Rgb]) -> float:
    """Distance in RGB from a colour to the most similar of the others."""
    return min(math.dist(color, other) for other in others)


def busy_ground(size: Size, rng: Random, pale: bool, side: Side) -> Image.Image:
    """A pale or dark picture behind the figures."""
    image = background(size, rng, side.photos)
    veil = Image.new("RGB", size, (255, 255, 255) if pale else (0, 0, 0))
    return Image.blend(image, veil, rng.uniform(0.6, 0.85))


def zone_center(size: Size, row: int, column: int, rng: Random, wobble: float = 0.07) -> Point:
    """A point near the middle of one of nine zones."""
    x = (column + 0.5) / 3 + rng.uniform(-wobble, wobble)
    y = (row + 0.5) / 3 + rng.uniform(-wobble, wobble)
    return x * size[0], y * size[1]


def where(zone: str) -> str:
    """The answer that names a zone."""
    article = "on the" if zone in {"left", "right"} else "at the" if " " not in zone else "in the"
    return f"It is {'in the' if zone == 'center' else article} {zone}."


def single_shape(assets: Assets, side: Side, size: Size, rng: Random) -> Scene:
    """One coloured figure anywhere: its shape and colour."""
    shape, name = rng.choice(SHAPE_NAMES), rng.choice(COLORS)
    color = shade(name, rng)
    image, ground = plain_ground(size, rng, [color], side)
    radius = min(size) * rng.uniform(0.13, 0.46)
    room = [max(0.0, extent / 2 - radius) for extent in size]
    center = (
        size[0] / 2 + rng.uniform(-1, 1) * room[0],
        size[1] / 2 + rng.uniform(-1, 1) * room[1],
    )
    draw_shape(image, shape, color, center, radius, rng)
    thing = with_article(f"{name} {shape}")
    noun = rng.choice((shape, shape, "shape", "object", "figure"))
    behind = f" on {with_article(ground)} background" if ground else ""
    turns = [
        (ask("shape", rng), f"It is {with_article(shape)}."),
        (ask("color", rng, noun), f"It is {name}."),
        (ask("name", rng), f"This is {thing}."),
        (ask("describe", rng), f"{thing[0].upper()}{thing[1:]}{behind}."),
        yes_no_shape(shape, name, rng),
    ]
    if ground:
        turns.append((ask("background", rng), f"The background is {ground}."))
    rng.shuffle(turns)
    return finish(image, turns, rng)


def yes_no_shape(shape: str, color: str, rng: Random) -> Turn:
    """A question about the figure that is right half of the time."""
    asked_shape = shape if rng.random() < 0.6 else rng.choice(SHAPE_NAMES)
    asked_color = color if rng.random() < 0.6 else rng.choice(COLORS)
    form, right = rng.choice(
        (
            (f"Is this {with_article(asked_shape)}?", asked_shape == shape),
            (f"Is the {shape} {asked_color}?", asked_color == color),
            (
                f"Is there {with_article(f'{asked_color} {asked_shape}')}?",
                (asked_shape, asked_color) == (shape, color),
            ),
            (f"Is there {with_article(asked_shape)} in the picture?", asked_shape == shape),
        )
    )
    return form, "Yes." if right else "No."


def placed_thing(assets: Assets, side: Side, size: Size, rng: Random) -> Scene:
    """One figure or drawing in one of nine zones: where is it?"""
    row, column = rng.randrange(3), rng.randrange(3)
    center = zone_center(size, row, column, rng)
    radius = min(size) * rng.uniform(0.08, 0.17)
    if rng.random() < 0.65:
        shape, color_name = rng.choice(SHAPE_NAMES), rng.choice(COLORS)
        color = shade(color_name, rng)
        image, _ = plain_ground(size, rng, [color], side)
        draw_shape(image, shape, color, center, radius, rng)
        name = rng.choice((shape, f"{color_name} {shape}"))
        turns = [(ask("color", rng, shape), f"It is {color_name}.")]
    else:
        image = background(size, rng, side.photos)
        name = rng.choice(list(side.drawings))
        sprite = any_style(side, name, rng)
        paste_sprite(image, sprite.image, center, round(2.2 * radius), 0)
        turns = [(ask("name", rng), f"This is {with_article(name)}.")]
    noun = name if rng.random() < 0.85 else "object"
    turns.insert(0, (ask("where", rng, noun), where(ZONES[row][column])))
    return finish(image, turns, rng)


def related_shapes(assets: Assets, side: Side, size: Size, rng: Random) -> Scene:
    """Two to four figures, all different in shape and colour: colours, places, relations."""
    number = rng.choice((2, 2, 2, 3, 4))
    shapes, colors = rng.sample(SHAPE_NAMES, number), rng.sample(COLORS, number)
    shades = [shade(name, rng) for name in colors]
    image, ground = plain_ground(size, rng, shades, side)
    cells = rng.sample([(r, c) for r in range(3) for c in range(3)], number)
    for shape, color, (row, column) in zip(shapes, shades, cells, strict=True):
        center = zone_center(size, row, column, rng, 0.03)
        draw_shape(image, shape, color, center, min(size) * rng.uniform(0.1, 0.15), rng)
    labels = [f"{c} {s}" for c, s in zip(colors, shapes, strict=True)]
    turns = relation_turns(shapes, colors, cells, rng, 3 if side is assets.train else 2)
    reading = [labels[i] for i in sorted(range(number), key=lambda i: cells[i])]
    listed = join([with_article(label) for label in reading])
    turns.append((ask("describe", rng), f"{listed[0].upper()}{listed[1:]}."))
    turns.append((ask("count", rng, "shapes"), f"There are {number}."))
    if ground:
        turns.append((ask("background", rng), f"The background is {ground}."))
    rng.shuffle(turns)
    return finish(image, turns, rng)


def relation_turns(
    shapes: list[str], colors: list[str], cells: list[tuple[int, int]], rng: Random, most: int = 2
) -> list[Turn]:
    """Colour and place of `most` figures, the relations of `most` - 1 pairs."""
    turns: list[Turn] = []
    for index in rng.sample(range(len(shapes)), min(most, len(shapes))):
        row, column = cells[index]
        turns.append((ask("color", rng, shapes[index]), f"It is {colors[index]}."))
        turns.append((ask("where", rng, shapes[index]), where(ZONES[row][column])))
        turns.append((f"What shape is {colors[index]}?", f"It is {with_article(shapes[index])}."))
    for _ in range(most - 1):
        turns.extend(pair_turns(shapes, colors, cells, rng))
    if len(shapes) == 2:
        turns.extend(extreme_turns(shapes, colors, cells))
    return turns


def pair_turns(
    shapes: list[str], colors: list[str], cells: list[tuple[int, int]], rng: Random
) -> list[Turn]:
    """How two of the figures lie to each other: a question for each axis on which they differ."""
    turns: list[Turn] = []
    a, b = rng.sample(range(len(shapes)), 2)
    for axis, words in ((1, ("left of", "right of")), (0, ("above", "below"))):
        if cells[a][axis] != cells[b][axis]:
            word = rng.choice(words)
            right = (cells[a][axis] < cells[b][axis]) == (word == words[0])
            names = [rng.choice((shapes[i], f"{colors[i]} {shapes[i]}")) for i in (a, b)]
            to_the = "to the " if axis == 1 and rng.random() < 0.5 else ""
            question = f"Is the {names[0]} {to_the}{word} the {names[1]}?"
            turns.append((question, "Yes." if right else "No."))
    return turns


def extreme_turns(shapes: list[str], colors: list[str], cells: list[tuple[int, int]]) -> list[Turn]:
    """Which of two is on the left, the right, above or below?"""
    turns: list[Turn] = []
    for axis, words in ((1, ("on the left", "on the right")), (0, ("at the top", "at the bottom"))):
        if cells[0][axis] != cells[1][axis]:
            first = 0 if cells[0][axis] < cells[1][axis] else 1
            for word, index in zip(words, (first, 1 - first), strict=True):
                thing = with_article(f"{colors[index]} {shapes[index]}")
                turns.append((f"Which shape is {word}?", f"{word.capitalize()} is {thing}."))
    return turns


def spread(size: Size, number: int, rng: Random) -> tuple[list[Point], float]:
    """Centres on a jittered grid so that nothing overlaps, and the largest radius."""
    columns = max(1, round(math.sqrt(number * size[0] / size[1]) + rng.uniform(-0.3, 0.9)))
    rows = math.ceil(number / columns)
    if rng.random() < 0.6:
        rows, columns = rows + (rng.random() < 0.4), columns + 1
    cell = size[0] / columns, size[1] / rows
    radius = min(cell) * rng.uniform(0.26, 0.42)
    cells = rng.sample([(r, c) for r in range(rows) for c in range(columns)], number)
    free = [max(0.0, extent / 2 - radius * 1.08) for extent in cell]
    return [
        (
            (c + 0.5) * cell[0] + rng.uniform(-free[0], free[0]),
            (r + 0.5) * cell[1] + rng.uniform(-free[1], free[1]),
        )
        for r, c in cells
    ], radius


def counted(number: int) -> str:
    """The answer that gives a number."""
    return "There is 1." if number == 1 else f"There are {number}."


def counting(assets: Assets, side: Side, size: Size, rng: Random) -> Scene:
    """One to nine equal figures or drawings, sometimes among others; large numbers are harder."""
    training = side is assets.train
    number = rng.choices(range(1, 10), COUNT_WEIGHTS)[0] if training else rng.randint(1, 9)
    among_others = number < 9 and rng.random() < (0.6 if training else 0.25)
    others = rng.randint(1, min(4, 9 - number)) if among_others else 0
    return count_scene(assets, side, size, rng, number, others)


def count_scene(
    assets: Assets, side: Side, size: Size, rng: Random, number: int, others: int
) -> Scene:
    """`number` equal things and `others` of another kind, at most nine together."""
    centers, radius = spread(size, number + others, rng)
    if rng.random() < 0.35:
        return count_drawings(side, size, centers, radius, number, rng)
    shape, other = rng.sample(SHAPE_NAMES, 2)
    same = rng.random() < 0.6
    name = rng.choice(COLORS)
    shades = [shade(name if same else rng.choice(COLORS), rng) for _ in centers]
    image, _ = plain_ground(size, rng, shades, side)
    for index, center in enumerate(centers):
        kind = shape if index < number else other
        draw_shape(image, kind, shades[index], center, radius * rng.uniform(0.75, 1), rng)
    noun = plural(shape) if others or rng.random() < 0.6 else rng.choice(("shapes", "objects"))
    turns = [(ask("count", rng, noun), counted(number))]
    if others:
        turns.append((ask("count", rng, plural(other)), counted(others)))
    return finish(image, turns, rng)


def count_drawings(
    side: Side, size: Size, centers: list[Point], radius: float, number: int, rng: Random
) -> Scene:
    """The same drawing again and again; the others, if any, are another drawing."""
    names = rng.sample(list(side.drawings), 2)
    sprites = [any_style(side, name, rng).image for name in names]
    image = background(size, rng, side.photos)
    for index, center in enumerate(centers):
        angle = rng.uniform(-12, 12) if rng.random() < 0.3 else 0
        paste_sprite(image, sprites[index >= number], center, round(2 * radius), angle)
    total = len(centers)
    noun = rng.choice(("objects", "things", "emoji", "drawings"))
    return finish(image, [(ask("count", rng, noun), counted(total))], rng)


def write(
    text: str, assets: Assets, side: Side, size: Size, rng: Random, turn: float
) -> Image.Image:
    """Text in one colour on a ground that it stands out from, as large as fits or smaller."""
    font_size = 96 if min(size) > 250 else rng.choice((48, 96))
    font = rng.choice(assets.fonts[font_size])
    box = font.getbbox(text)
    word = Image.new("L", (box[2] - box[0] + 8, box[3] - box[1] + 8))
    ImageDraw.Draw(word).text((4 - box[0], 4 - box[1]), text, font=font, fill=255)
    if turn:
        word = word.rotate(turn, Image.Resampling.BILINEAR, expand=True)
    scale = min(size[0] / word.width, size[1] / word.height) * rng.uniform(0.5, 1.0)
    scale = min(scale, max(1.6, 0.3 * size[1] / word.height))
    inner = (max(1, round(word.width * scale)), max(1, round(word.height * scale)))
    word = word.resize(inner, Image.Resampling.BICUBIC)
    color = (0, 0, 0) if rng.random() < 0.4 else random_color(rng)
    image, _ = plain_ground(size, rng, [color], side)
    spare = [max(0, a - b) for a, b in zip(size, inner, strict=True)]
    image.paste(color, (rng.randint(0, spare[0]), rng.randint(0, spare[1])), word)
    return image


def written(assets: Assets, side: Side, size: Size, rng: Random) -> Scene:
    """A word of three to five letters, or to training also random letters or a number."""
    training, kind = side is assets.train, rng.random()
    if training and kind < 0.12:
        text = str(rng.randrange(10 ** rng.randint(1, 4)))
    elif training and kind < 0.3:
        text = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 5)))
    else:
        text = rng.choice(side.words)
    text = rng.choice((text, text.upper(), text.capitalize()))
    turn = rng.uniform(-8, 8) if rng.random() < 0.3 else 0
    image = write(text, assets, side, size, rng, turn)
    noun = "number" if text.isdigit() else "word"
    turns = [(ask(noun, rng), f'The {noun} is "{text}".')]
    return finish(image, turns, rng)
