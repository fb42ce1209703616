"""Asks a running server about held-out pictures drawn by seed and writes the table of answers.

python ask_server.py --data DATA --url http://127.0.0.1:8000 --card ../../lightvl/demo/README.md

Every picture travels as a user's would: a PNG in a data URL to `/v1/chat/completions`.
"""

import argparse
import base64
import io
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from random import Random

import figures
import photographs
import scenes
from assets import Assets, load_assets
from canvas import crop_photo
from evaluate import pick, size_for
from PIL import Image
from scenes import Scene, Turn

MARKS = ("<!-- table begin -->", "<!-- table end -->")
Maker = Callable[[Assets, Random], tuple[Scene, Turn]]


def drawing(assets: Assets, rng: Random) -> tuple[Scene, Turn]:
    """An emoji in a style that was trained on."""
    scene = scenes.named_drawing(assets, assets.test, size_for(rng), rng)
    return scene, scene.turns[0]


def new_style(assets: Assets, rng: Random) -> tuple[Scene, Turn]:
    """An emoji in a style that this concept was never shown in."""
    sprite = rng.choice(assets.unseen)
    scene = scenes.unseen_drawing(assets, sprite, assets.test, size_for(rng), rng)
    return scene, scene.turns[0]


def photo(assets: Assets, rng: Random) -> tuple[Scene, Turn]:
    """A crop of a photograph that was never trained on."""
    picture = rng.choice(assets.test.photos)[1]
    scene = photographs.photo_scene(crop_photo(picture, size_for(rng), rng), rng)
    return scene, scene.turns[0]


def from_scene(make: Callable[..., Scene], *starts: str) -> Maker:
    """The first question of a scene whose answer begins in one of these ways."""

    def ask(assets: Assets, rng: Random) -> tuple[Scene, Turn]:
        scene = make(assets, assets.test, size_for(rng), rng)
        return scene, pick(scene.turns, *(starts or ("",)))

    return ask


KINDS: tuple[tuple[str, Maker, int], ...] = (
    ("drawing", drawing, 8),
    ("new style", new_style, 5),
    ("figure", from_scene(figures.single_shape), 5),
    ("position", from_scene(figures.placed_thing), 4),
    ("relation", from_scene(figures.related_shapes), 4),
    ("counting", from_scene(figures.counting), 4),
    ("word", from_scene(figures.written), 4),
    ("flag", from_scene(scenes.flag), 4),
    ("easy-VQA", from_scene(scenes.easy_vqa), 2),
    ("photograph", photo, 5),
)


def ask(url: str, image: Image.Image, question: str) -> str:
    """The server's greedy answer to one question about one picture."""
    data = io.BytesIO()
    image.save(data, "PNG")
    address = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "text", "text": question},
    ]
    body = {
        "model": json.loads(get(f"{url}/v1/models"))["data"][0]["id"],
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 48,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    answer = json.loads(get(request))
    return str(answer["choices"][0]["message"]["content"])


def get(request: str | urllib.request.Request) -> bytes:
    """The body of a reply."""
    with urllib.request.urlopen(request, timeout=60) as reply:
        return bytes(reply.read())


def table(assets: Assets, url: str, seed: int) -> str:
    """All pictures, questions and answers as Markdown; wrong ones are marked."""
    rng, rows, right = Random(seed), [], 0
    for kind, make, number in KINDS:
        for _ in range(number):
            scene, (question, want) = make(assets, rng)
            got = ask(url, scene.images[0], question)
            hit = got.strip().casefold() == want.casefold()
            right += hit
            size = "x".join(map(str, scene.images[0].size))
            rows.append(
                f"| {kind} | {size} | {question} | {got} | {'yes' if hit else f'no: {want}'} |"
            )
    head = "| kind | pixels | question | answer | right |\n| --- | --- | --- | --- | --- |"
    return f"{right} of {len(rows)} right (seed {seed}).\n\n{head}\n" + "\n".join(rows)


def main() -> None:
    """Prints the table and, with --card, puts it between the card's marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--card", type=Path)
    parser.add_argument("--seed", type=int, default=2026)
    args = parser.parse_args()
    text = table(load_assets(args.data), args.url.rstrip("/"), args.seed)
    print(text)
    if args.card:
        card = args.card.read_text()
        before, after = card.split(MARKS[0])[0], card.split(MARKS[1])[1]
        args.card.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
