"""What the pictures are made of: sprites, flags, photographs, words, fonts and easy-VQA."""

import io
import json
import zipfile
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image, ImageFont

FONT_SIZES = (24, 48, 96)
SPRITE_SIZE = 128
BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class Sprite:
    """A drawing with a transparent ground; `name` is None where nobody says what it shows."""

    image: Image.Image
    name: str | None
    style: str


@dataclass(frozen=True)
class VqaPicture:
    image: Image.Image
    questions: list[tuple[str, str]]


@dataclass
class Side:
    """All material of one side of the split ("train" or "test").

    Attributes:
        drawings: Concept -> its emoji and, to training, clip art.
        more_drawings: Concept -> what other styles have of it; training only.
        clip_art: Clip art, named or not.
        photos: (source, photograph).
        words: Words of three to five letters.
        vqa: Pictures of easy-VQA.
    """

    drawings: dict[str, list[Sprite]] = field(default_factory=lambda: defaultdict(list))
    more_drawings: dict[str, list[Sprite]] = field(default_factory=dict)
    clip_art: list[Sprite] = field(default_factory=list)
    photos: list[tuple[str, Image.Image]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    vqa: list[VqaPicture] = field(default_factory=list)

    @cached_property
    def photos_by_source(self) -> dict[str, list[Image.Image]]:
        sources: dict[str, list[Image.Image]] = defaultdict(list)
        for source, picture in self.photos:
            sources[source].append(picture)
        return dict(sources)


@dataclass
class Assets:
    """Both sides, and what they share: flags and fonts."""

    train: Side
    test: Side
    unseen: list[Sprite]
    flags: dict[str, dict[str, Image.Image]]
    fonts: dict[int, list[ImageFont.FreeTypeFont]]

    def side(self, test: bool) -> Side:
        return self.test if test else self.train


def read_archive(path: Path) -> list[tuple[Image.Image, dict[str, str]]]:
    """The pictures of an archive, decoded, each with its facts."""
    with zipfile.ZipFile(path) as archive:
        index = json.loads(archive.read("index.json"))
        pictures = [Image.open(io.BytesIO(archive.read(f"{i}.webp"))) for i in range(len(index))]
    for picture in pictures:
        picture.load()
    return list(zip(pictures, index, strict=True))


def load_assets(folder: Path) -> Assets:
    """Reads the archives that `prepare.py` wrote into `folder` (about 300 MB of memory)."""
    train, test, unseen = Side(), Side(), []
    for picture, facts in read_archive(folder / "emoji.zip"):
        sprite = Sprite(picture.convert("RGBA"), facts["name"], facts["style"])
        if facts["side"] == "unseen":
            unseen.append(sprite)
        else:
            train.drawings[facts["name"]].append(sprite)
            test.drawings[facts["name"]].append(sprite)
    for picture, facts in read_archive(folder / "more_emoji.zip"):
        whole = picture.convert("RGBA").resize((SPRITE_SIZE, SPRITE_SIZE), BICUBIC)
        sprite = Sprite(whole, facts["name"], facts["style"])
        train.more_drawings.setdefault(facts["name"], []).append(sprite)
    for picture, facts in read_archive(folder / "clip_art.zip"):
        side = train if facts["side"] == "train" else test
        side.clip_art.append(Sprite(picture.convert("RGBA"), facts["name"], "clip art"))
        if side is train and facts["name"]:
            train.drawings[facts["name"]].append(side.clip_art[-1])
    for picture, facts in read_archive(folder / "photos.zip"):
        side = train if facts["side"] == "train" else test
        side.photos.append((facts["source"], picture.convert("RGB")))
    for word, name in json.loads((folder / "words.json").read_text()).items():
        (train if name == "train" else test).words.append(word)
    read_vqa(folder / "easy_vqa.zip", train, test)
    flags: dict[str, dict[str, Image.Image]] = defaultdict(dict)
    for picture, facts in read_archive(folder / "flags.zip"):
        flags[facts["name"]][facts["style"]] = picture.convert("RGBA")
    return Assets(train, test, unseen, flags, read_fonts(folder / "fonts.zip"))


def read_vqa(path: Path, train: Side, test: Side) -> None:
    """easy-VQA's pictures with their questions, by its own split."""
    with zipfile.ZipFile(path) as archive:
        for name, side in (("train", train), ("test", test)):
            asked = defaultdict(list)
            for question, answer, number in json.loads(archive.read(f"{name}.json")):
                asked[number].append((question, answer))
            for number, questions in asked.items():
                image = Image.open(io.BytesIO(archive.read(f"{name}/{number}.png")))
                side.vqa.append(VqaPicture(image.convert("RGB"), questions))


def read_fonts(path: Path) -> dict[int, list[ImageFont.FreeTypeFont]]:
    """Every font in each size of `FONT_SIZES`."""
    with zipfile.ZipFile(path) as archive:
        files = [archive.read(name) for name in sorted(archive.namelist())]
    return {
        size: [ImageFont.truetype(io.BytesIO(data), size) for data in files] for size in FONT_SIZES
    }
