"""Emoji concepts: which ones are taught, what each is called, and its drawings in every style."""

import json
import re
from io import BytesIO
from pathlib import Path

import cairosvg
import emoji
from PIL import Image, ImageDraw, ImageFont

STYLES = ("noto", "twemoji", "fluent")
# Styles that only training sees -> the style above whose designs they share, if any: a concept
# whose drawing in that style is held out isn't shown in theirs either.
MORE_STYLES = {
    "emojione": None,
    "fxemoji": None,
    "noto-v1": "noto",
    "fluent-emoji-flat": "fluent",
}
SKIPPED_GROUPS = {"Component", "Flags"}
PEOPLE_GROUPS = {"family", "person", "person-resting", "person-fantasy"} | {
    f"person-{kind}" for kind in ("sport", "gesture", "activity", "role", "symbol")
}
KEPT_PEOPLE = {
    *("baby", "boy", "girl", "man", "woman", "old man", "old woman", "astronaut", "firefighter"),
    *("artist", "farmer", "cook", "guard", "detective", "ninja", "police officer", "singer"),
    *("construction worker", "person running", "person swimming", "person biking", "prince"),
    *("person surfing", "snowboarder", "skier", "person walking", "woman dancing", "man dancing"),
    *("person shrugging", "person facepalming", "person raising hand", "person bowing"),
    *("person in tuxedo", "pilot", "scientist", "pregnant woman", "princess", "horse racing"),
    *("person climbing", "person fencing", "person in bed", "person taking bath", "Santa Claus"),
    *("baby angel", "superhero", "supervillain", "mage", "fairy", "vampire", "merperson"),
    *("elf", "genie", "zombie", "troll", "bust in silhouette", "footprints", "fingerprint"),
}
SHORTER_NAMES = {
    "automobile": "car",
    "oncoming automobile": "oncoming car",
    "Hong Kong SAR China": "Hong Kong",
    "Macao SAR China": "Macao",
    "Myanmar (Burma)": "Myanmar",
}
SKIPPED_NAMES = re.compile(
    r"^(Japanese|keycap|.*(medium|small) (square|diamond)|.*medium-small|.*-thirty|.*o.clock$"
    r"|red triangle|.*button.*:|.*facing right)"
)


def concept_name(entry: dict[str, str]) -> str | None:
    """The answer for an emoji, its CLDR name in plain letters, or None to leave it out."""
    if entry["category"] in SKIPPED_GROUPS or "IDEOGRAPH" in entry["name"]:
        return None
    name = cldr_name(entry["unified"])
    if name is None or SKIPPED_NAMES.match(name):
        return None
    if entry["subcategory"] in PEOPLE_GROUPS and name not in KEPT_PEOPLE:
        return None
    if entry["subcategory"] in {"alphanum", "av-symbol"}:
        name = name.removesuffix(" button")
    return name


def cldr_name(unified: str) -> str | None:
    """The CLDR short name of an emoji given as code points joined by dashes."""
    glyph = "".join(chr(int(code, 16)) for code in unified.split("-"))
    data = emoji.EMOJI_DATA.get(glyph) or emoji.EMOJI_DATA.get(glyph.replace("\ufe0f", ""))
    if data is None:
        return None
    name = re.sub("[“”]", "", data["en"].strip(":").replace("_", " ").replace("\u2019", "'"))
    return SHORTER_NAMES.get(name, name)


class EmojiStyles:
    """Draws an emoji in each style, from the packages unpacked under `root`."""

    def __init__(self, root: Path) -> None:
        font = next((root / "fonts-noto-color-emoji").rglob("NotoColorEmoji.ttf"))
        self.noto_font = ImageFont.truetype(str(font), 109)
        self.noto = next(root.glob("emoji-datasource-google-*")) / "package/img/google/64"
        self.twemoji = next(next(root.glob("twemoji-svg-*")).rglob("1f600.svg")).parent
        self.fluent = next(root.glob("lobehub-fluent-emoji-3d-*")) / "package/assets"

    def draw(self, entry: dict[str, str], style: str) -> Image.Image | None:
        code = entry["image"].removesuffix(".png")
        names = (code, code.replace("-fe0f", ""), code.lstrip("0"), code.lstrip("0").split("-")[0])
        if style == "noto":
            return self.draw_noto(code)
        folder, suffix = (self.twemoji, "svg") if style == "twemoji" else (self.fluent, "webp")
        path = next((p for n in names if (p := folder / f"{n}.{suffix}").exists()), None)
        if path is None:
            return None
        if suffix == "svg":
            return Image.open(BytesIO(cairosvg.svg2png(url=str(path), output_width=256)))
        return Image.open(path)

    def draw_noto(self, code: str) -> Image.Image | None:
        """From the font (136 px) where one code point suffices, else the 64-px picture."""
        code_points = code.removesuffix("-fe0f").split("-")
        if len(code_points) == 1:
            canvas = Image.new("RGBA", (160, 160))
            glyph = chr(int(code_points[0], 16))
            ImageDraw.Draw(canvas).text((8, 8), glyph, font=self.noto_font, embedded_color=True)
            if canvas.getbbox():
                return canvas
        path = self.noto / f"{code}.png"
        return Image.open(path) if path.exists() else None


def plain_letters(name: str) -> str:
    """Letters and digits alone, in lower case: how icons are found whatever joins their words."""
    return re.sub("[^a-z0-9]", "", name.lower())


class MoreStyles:
    """Draws an emoji from the icon sets unpacked under `root`, which go by names.

    Args:
        root: Folder of the unpacked packages.
        concepts: All names that are taught: an alias that is another concept's name isn't used.
    """

    def __init__(self, root: Path, concepts: set[str]) -> None:
        self.taken = {plain_letters(name) for name in concepts}
        self.icons: dict[str, dict[str, str]] = {}
        for style in MORE_STYLES:
            folder = next(root.glob(f"iconify-json-{style}-[0-9]*"))
            data = json.loads((folder / "package/icons.json").read_text())
            width, height = data.get("width", 16), data.get("height", 16)
            drawn = {
                name: SVG.format(icon.get("width", width), icon.get("height", height), icon["body"])
                for name, icon in data["icons"].items()
            }
            for alias, target in data.get("aliases", {}).items():
                if target["parent"] in drawn:
                    drawn.setdefault(alias, drawn[target["parent"]])
            self.icons[style] = {plain_letters(name): svg for name, svg in drawn.items()}

    def draw(self, entry: dict[str, str], name: str, style: str) -> Image.Image | None:
        """The drawing of concept `name`, 128 pixels wide, or None where this set has none."""
        own = [name, cldr_name(entry["unified"]) or name, entry["name"]]
        others = map(plain_letters, [*entry["short_names"], f"person {name}"])
        names = [*map(plain_letters, own), *(n for n in others if n not in self.taken)]
        icons = self.icons[style]
        svg = next((icons[n] for n in names if n in icons), None)
        if svg is None:
            return None
        return Image.open(BytesIO(cairosvg.svg2png(bytestring=svg.encode(), output_width=128)))


SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    ' viewBox="0 0 {} {}">{}</svg>'
)
