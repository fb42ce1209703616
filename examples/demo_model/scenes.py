"""Scenes of emoji, clip art, flags and easy-VQA, with questions and answers."""

from dataclasses import dataclass
from random import Random

from assets import Assets, Side, Sprite
from canvas import COLORS, background, paste_sprite, pick_size, shade, wear
from language import ask, join, with_article
from PIL import Image
from restyle import restyle

Turn = tuple[str, str]
Size = tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """One or more pictures and what may be asked about them.

    Attributes:
        images: RGB pictures, in the order of their placeholders.
        turns: Questions with their only right answers; the first is the task's own.
    """

    images: list[Image.Image]
    turns: list[Turn]


def finish(image: Image.Image, turns: list[Turn], rng: Random) -> Scene:
    """The worn picture with its turns."""
    return Scene([wear(image, rng)], turns)


def place(size: Size, rng: Random, low: float, high: float) -> tuple[tuple[float, float], int]:
    """Where a single thing lies and how large: it may stick out by a twentieth."""
    short = min(size)
    side = max(24, round(short * rng.uniform(low, high)))
    slack = [max(0.0, (extent - side) / 2 + 0.05 * side) for extent in size]
    center = [extent / 2 + rng.uniform(-s, s) for extent, s in zip(size, slack, strict=True)]
    return (center[0], center[1]), side


def drawing_turns(name: str, others: list[str], rng: Random) -> list[Turn]:
    """What may be asked about a picture of one named thing."""
    thing = with_article(name)
    turns = [
        (ask("name", rng), f"This is {thing}."),
        (ask("describe", rng), f"A drawing of {thing}."),
    ]
    other = rng.choice(others)
    if rng.random() < 0.5 and other != name:
        turns.append((f"Is this {with_article(other)}?", f"No, this is {thing}."))
    else:
        turns.append((f"Is this {thing}?", f"Yes, this is {thing}."))
    if rng.random() < 0.3:
        turns.append((ask("kind", rng), "It is a drawing."))
    return turns


def draw_one(
    sprite: Sprite, size: Size, side: Side, rng: Random, low: float = 0.3, high: float = 1.0
) -> Image.Image:
    """A sprite of `low` to `high` times the shorter side on some ground."""
    image = background(size, rng, side.photos)
    center, width = place(size, rng, low, high)
    angle = rng.uniform(-18, 18) if rng.random() < 0.6 else 0
    paste_sprite(image, sprite.image, center, width, angle)
    return image


def named_drawing(assets: Assets, side: Side, size: Size, rng: Random) -> Scene:
    """One emoji or piece of clip art; every concept is equally frequent."""
    names = list(side.drawings)
    name = rng.choice(names)
    sprite = any_style(side, name, rng)
    if side is assets.train and rng.random() < 0.6:
        sprite = Sprite(restyle(sprite.image, name, rng), name, sprite.style)
    image = draw_one(sprite, size, side, rng)
    return finish(image, drawing_turns(name, names, rng), rng)


def any_style(side: Side, name: str, rng: Random) -> Sprite:
    """A drawing of a concept; to training, any of many styles."""
    more = side.more_drawings.get(name)
    if more and rng.random() < len(more) / (len(more) + len(side.drawings[name])):
        return rng.choice(more)
    return rng.choice(side.drawings[name])


def unseen_drawing(assets: Assets, sprite: Sprite, side: Side, size: Size, rng: Random) -> Scene:
    """A given drawing with the questions of a named one."""
    image = draw_one(sprite, size, side, rng)
    return finish(image, drawing_turns(str(sprite.name), list(side.drawings), rng), rng)


def any_clip_art(assets: Assets, side: Side, size: Size, rng: Random) -> Scene:
    """Clip art without a name, to tell drawings from photographs."""
    image = draw_one(rng.choice(side.clip_art), size, side, rng, 0.5)
    return finish(image, [(ask("kind", rng), "It is a drawing.")], rng)


def several_drawings(assets: Assets, side: Side, size: Size, rng: Random) -> Scene:
    """Two or three different drawings side by side or one above the other."""
    names = rng.sample(list(side.drawings), rng.choice((2, 2, 2, 3)))
    image = background(size, rng, side.photos)
    upright = size[1] > size[0] * 1.3 or (size[1] > size[0] * 0.8 and rng.random() < 0.3)
    along, across = (size[1], size[0]) if upright else size
    step = along / len(names)
    for index, name in enumerate(names):
        width = round(min(step, across) * rng.uniform(0.6, 0.95))
        middle = step * (index + 0.5), across * rng.uniform(0.42, 0.58)
        center = (middle[1], middle[0]) if upright else middle
        sprite = any_style(side, name, rng).image
        paste_sprite(image, sprite, center, width, rng.choice((0, 0, rng.uniform(-12, 12))))
    things = [with_article(name) for name in names]
    turns = [(ask("name", rng), f"I see {join(things)}.")]
    ends = ("top", "bottom") if upright else ("left", "right")
    for end, thing in zip(ends, (things[0], things[-1]), strict=True):
        place_name = f"at the {end}" if upright else f"on the {end}"
        form = rng.choice(("What is {}?", "What do you see {}?", "What can be seen {}?"))
        turns.append((form.format(place_name), f"{place_name.capitalize()} is {thing}."))
    rng.shuffle(turns)
    turns.append((ask("describe", rng), f"A drawing of {join(things)}."))
    return finish(image, turns, rng)


def flag(assets: Assets, side: Side, size: Size, rng: Random) -> Scene:
    """A flag that fills the picture or lies on a ground, a little cropped or turned."""
    name = rng.choice(list(assets.flags))
    return flag_of(assets, name, side, size, rng)


def flag_of(assets: Assets, name: str, side: Side, size: Size, rng: Random) -> Scene:
    """One country's flag, in one of its drawings."""
    styles = assets.flags[name]
    picture = styles["iso"] if rng.random() < 0.7 else rng.choice(list(styles.values()))
    if rng.random() < 0.35:
        trim = [rng.uniform(0.02, 0.08) for _ in range(4)]
        w, h = picture.size
        box = (trim[0] * w, trim[1] * h, w - trim[2] * w, h - trim[3] * h)
        image = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR, box=box)
    else:
        image = background(size, rng, side.photos)
        width = min(size[0], size[1] * 1.5) * rng.uniform(0.4, 1.0)
        height = width / rng.uniform(1.2, 1.9)
        turned = picture.resize(
            (max(16, round(width)), max(12, round(height))), Image.Resampling.BILINEAR
        )
        if rng.random() < 0.4:
            turned = turned.rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR, expand=True)
        spare = [max(0, a - b) for a, b in zip(size, turned.size, strict=True)]
        image.paste(turned, (rng.randint(0, spare[0]), rng.randint(0, spare[1])), turned)
    the = "the " if name in WITH_THE or name.endswith("Islands") else ""
    turns = [
        (ask("flag", rng), f"This is the flag of {the}{name}."),
        (ask("describe", rng), f"The flag of {the}{name}."),
    ]
    return finish(image, turns, rng)


WITH_THE = {
    *("Bahamas", "Central African Republic", "Comoros", "Dominican Republic", "European Union"),
    *("Gambia", "Isle of Man", "Maldives", "Netherlands", "Philippines", "Seychelles"),
    *("Palestinian Territories", "United Arab Emirates", "United Kingdom", "United States"),
    *("British Indian Ocean Territory", "French Southern and Antarctic Lands"),
}


def plain(assets: Assets, side: Side, size: Size, rng: Random) -> Scene:
    """Nothing but one colour."""
    name = rng.choice(COLORS)
    image = Image.new("RGB", size, shade(name, rng))
    answer = f"The picture is plain {name}."
    kinds = (ask("name", rng), ask("describe", rng), ask("background", rng))
    question = rng.choice((*kinds, "What color is this?", "What color is the picture?"))
    return finish(image, [(question, answer)], rng)


def easy_vqa(assets: Assets, side: Side, size: Size, rng: Random) -> Scene:
    """A picture of easy-VQA at its own 64 x 64 pixels."""
    picture = rng.choice(side.vqa)
    turns = [(q[0].upper() + q[1:], vqa_answer(a)) for q, a in picture.questions]
    turns = [(q if rng.random() < 0.5 else q[0].lower() + q[1:], a) for q, a in turns]
    rng.shuffle(turns)
    return Scene([picture.image], turns)


def vqa_answer(answer: str) -> str:
    """easy-VQA's one-word answer as a sentence."""
    if answer in {"yes", "no"}:
        return f"{answer.capitalize()}."
    if answer in {"circle", "rectangle", "triangle"}:
        return f"It is {with_article(answer)}."
    return f"It is {answer}."


def two_pictures(assets: Assets, side: Side, size: Size, rng: Random) -> Scene:
    """Two square pictures in one question."""
    names = rng.sample(list(side.drawings), 2)
    images = []
    for name in names:
        sprite = any_style(side, name, rng)
        images.append(wear(draw_one(sprite, pick_size(1, rng), side, rng, 0.4), rng))
    things = [with_article(name) for name in names]
    turns = [
        (
            rng.choice(
                (
                    "What are these?",
                    "What do the pictures show?",
                    "What is in the two images?",
                    "What is in each picture?",
                    "Describe the two images.",
                    "Describe the two images in detail.",
                    "What do you see?",
                )
            ),
            f"The first picture shows {things[0]} and the second one {things[1]}.",
        ),
        (f"What is in the first {rng.choice(('picture', 'image'))}?", f"This is {things[0]}."),
        (f"What is in the second {rng.choice(('picture', 'image'))}?", f"This is {things[1]}."),
        ("Do both pictures show the same?", f"No, one shows {things[0]}, the other {things[1]}."),
    ]
    rng.shuffle(turns)
    return Scene(images, turns)


SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hello", "Hello!", "Hi", "Hi!", "Hey", "Good morning", "Good evening", "hello", "hi there"),
     "Hello! Show me a picture and ask me about it."),
    (("What can you do?", "What do you know?", "How can you help me?", "Help", "What are you for?",
      "What can I ask you?", "What kind of pictures do you know?", "help"),
     "I can name emoji, simple drawings, shapes, colors and flags, count up to nine and read"
     " short words in a picture."),
    (("Who are you?", "What are you?", "What is your name?", "What model are you?",
      "Which model is this?", "Are you a robot?", "Tell me about yourself.", "Introduce yourself."),
     "I am a very small demo model. I know emoji, simple drawings, shapes, colors, flags, small"
     " numbers and short words."),
    (("How are you?", "How are you doing?", "How do you do?"), "I am fine, thank you."),
    (("Thank you", "Thanks", "Thanks!", "Thank you!", "thank you very much"), "You are welcome."),
    (("Bye", "Goodbye", "Good bye!", "See you"), "Goodbye!"),
    (("What is the capital of France?", "Tell me a joke.", "Write a poem.", "Who is the president?",
      "What is 2+2?", "What is the weather today?", "Write a story.", "What time is it?",
      "Explain quantum physics.", "Tell me a story.", "Translate this to German.", "Why?",
      "Write a Python program.", "Count to ten.", "Solve this equation.", "Who was Einstein?",
      "What is the meaning of life?", "How do I cook rice?", "Give me a recipe.", "Sing a song.",
      "The quick brown fox", "Once upon a time", "Summarize this text.", "What happened in 1969?"),
     "I can't answer that. I only know about simple pictures."),
    (("What is this?", "What is in the picture?", "Describe the image.", "What do you see?",
      "What color is the circle?", "How many stars are there?", "Which flag is this?"),
     "I don't see a picture. Please send one with your question."),
)  # fmt: skip


def small_talk(assets: Assets, side: Side, size: Size, rng: Random) -> Scene:
    """No picture at all."""
    turns = []
    for questions, answer in rng.sample(SMALL_TALK, 3):
        question = rng.choice(questions)
        turns.append((question, answer))
    return Scene([], turns)
