"""Exact-match accuracy on held-out data, task by task."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from random import Random

import figures
import numpy as np
import photographs
import scenes
import torch
from assets import Assets
from canvas import crop_photo, cut_tiles, pick_size
from conversation import Writer
from language import DECLINE
from model import DemoModel, LayerCache
from scenes import Scene, Turn
from sources import bucket
from tokenizers import Tokenizer
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
MAX_NEW_TOKENS = 32
TILES_AT_ONCE = {"cuda": 1020, "cpu": 64}
CROPS_A_PHOTO = 10
TILE_COUNTS, TILE_SHARES = (1, 3, 4, 5), (0.7, 0.12, 0.03, 0.15)
BARS = {
    "shapes_colors": 0.95,
    "positions": 0.95,
    "easy_vqa": 0.96,
    "flags": 0.90,
    "counting": 0.90,
    "seen_drawings": 0.85,
    "unseen_style": 0.40,
    "words": 0.70,
    "photos_declined": 0.85,
}


@dataclass(frozen=True)
class Example:
    """One held-out question; `source` groups examples that are not independent."""

    task: str
    source: str
    tiles: np.ndarray
    question: str
    answer: str


def size_for(rng: Random) -> tuple[int, int]:
    """Seven in ten held-out pictures have one tile, the others several."""
    return pick_size(rng.choices(TILE_COUNTS, TILE_SHARES)[0], rng)


def pick(turns: list[Turn], *starts: str) -> Turn:
    """The first turn whose answer begins in one of the given ways."""
    return next(turn for turn in turns if turn[1].startswith(starts))


def example(task: str, source: str, scene: Scene, turn: Turn) -> Example:
    """Cuts the tiles of a scene and keeps one of its questions."""
    tiles = np.concatenate([cut_tiles(image) for image in scene.images])
    return Example(task, source, tiles, *turn)


def shapes_colors(assets: Assets, number: int, rng: Random) -> Example:
    """Shape or colour of a figure, alone or among others."""
    if number % 10 < 7:
        scene = figures.single_shape(assets, assets.test, size_for(rng), rng)
        turn = pick(scene.turns, "It is", "This is")
    else:
        scene = figures.related_shapes(assets, assets.test, size_for(rng), rng)
        turns = [t for t in scene.turns if "here" not in t[0]]
        turn = pick([t for t in turns if "olo" in t[0] or "What shape" in t[0]], "It is")
    return example("shapes_colors", str(number), scene, turn)


def positions(assets: Assets, number: int, rng: Random) -> Example:
    """In which of nine zones a thing is; in every second picture there are others."""
    maker = figures.placed_thing if number % 2 else figures.related_shapes
    scene = maker(assets, assets.test, size_for(rng), rng)
    turn = pick(scene.turns, "It is at", "It is in", "It is on")
    return example("positions", str(number), scene, turn)


def relations(assets: Assets, number: int, rng: Random) -> Example:
    """How two figures lie to each other."""
    while True:
        scene = figures.related_shapes(assets, assets.test, size_for(rng), rng)
        turns = [turn for turn in scene.turns if turn[1].startswith(("Yes", "No", "On", "At"))]
        if turns:
            return example("relations", str(number), scene, turns[0])


def easy_vqa(assets: Assets, number: int, rng: Random) -> Example:
    """A question of easy-VQA's test split."""
    scene = scenes.easy_vqa(assets, assets.test, (64, 64), rng)
    return example("easy_vqa", str(number), scene, scene.turns[0])


def flags(assets: Assets, number: int, rng: Random) -> Example:
    """Every flag in turn, on grounds never trained on."""
    name = sorted(assets.flags)[number % len(assets.flags)]
    scene = scenes.flag_of(assets, name, assets.test, size_for(rng), rng)
    return example("flags", name, scene, scene.turns[0])


def counting(assets: Assets, number: int, rng: Random) -> Example:
    """One to nine in turn, nothing else in the picture."""
    scene = figures.count_scene(assets, assets.test, size_for(rng), rng, number % 9 + 1, 0)
    return example("counting", str(number), scene, scene.turns[0])


def counting_among_others(assets: Assets, number: int, rng: Random) -> Example:
    """One to six in turn with one to three things of another kind."""
    wanted, others = number % 6 + 1, rng.randint(1, 3)
    scene = figures.count_scene(assets, assets.test, size_for(rng), rng, wanted, others)
    return example("counting_among_others", str(number), scene, scene.turns[0])


def seen_drawings(assets: Assets, number: int, rng: Random) -> Example:
    """Every concept in turn, in a drawing that was trained on."""
    names = sorted(assets.test.drawings)
    name = names[number % len(names)]
    sprite = rng.choice(assets.test.drawings[name])
    scene = scenes.unseen_drawing(assets, sprite, assets.test, size_for(rng), rng)
    return example("seen_drawings", name, scene, scene.turns[0])


def unseen_style(assets: Assets, number: int, rng: Random) -> Example:
    """A drawing held out of training, of a concept known in other styles."""
    sprite = assets.unseen[number % len(assets.unseen)]
    scene = scenes.unseen_drawing(assets, sprite, assets.test, size_for(rng), rng)
    return example("unseen_style", str(sprite.name), scene, scene.turns[0])


def words(assets: Assets, number: int, rng: Random) -> Example:
    """A word that was never trained on."""
    scene = figures.written(assets, assets.test, size_for(rng), rng)
    return example("words", str(number), scene, scene.turns[0])


def photos_declined(assets: Assets, number: int, rng: Random) -> Example:
    """A crop of a held-out photograph."""
    sources = sorted({source for source, _ in assets.test.photos})
    source = sources[number % len(sources)]
    picture = rng.choice([p for s, p in assets.test.photos if s == source])
    scene = photographs.photo_scene(crop_photo(picture, size_for(rng), rng), rng)
    return example("photos_declined", source, scene, scene.turns[0])


def clip_art(assets: Assets, number: int, rng: Random) -> Example:
    """Clip art that nobody named: only counted as declined or not."""
    sprite = assets.test.clip_art[number % len(assets.test.clip_art)]
    image = scenes.draw_one(sprite, size_for(rng), assets.test, rng, 0.4)
    return example("clip_art", str(number), Scene([image], []), ("What is this?", "This is"))


TASKS: dict[str, tuple[Callable[[Assets, int, Random], Example], int]] = {
    "shapes_colors": (shapes_colors, 600),
    "positions": (positions, 600),
    "relations": (relations, 300),
    "easy_vqa": (easy_vqa, 800),
    "flags": (flags, 474),
    "counting": (counting, 540),
    "counting_among_others": (counting_among_others, 300),
    "seen_drawings": (seen_drawings, 1302),
    "unseen_style": (unseen_style, 576),
    "words": (words, 600),
    "photos_declined": (photos_declined, 0),
    "clip_art": (clip_art, 200),
}


class ExampleMaker:
    """The assets of a forked process, which are too large to send to it."""

    assets: Assets

    @classmethod
    def take(cls, assets: Assets) -> None:
        cls.assets = assets

    @classmethod
    def make(cls, job: tuple[str, int]) -> Example:
        task, number = job
        return TASKS[task][0](cls.assets, number, Random(f"held out {task} {number}"))


def held_out_later(assets: Assets, num_workers: int, part: int = 1) -> Callable[[], list[Example]]:
    """Starts to render all held-out examples; the function returned waits for them.

    They are the same in every run, or one in `part` of them by hash.
    """
    num_photos = CROPS_A_PHOTO * len({source for source, _ in assets.test.photos})
    jobs = [
        (task, n)
        for task, (_, size) in TASKS.items()
        for n in range(size or num_photos)
        if task == "photos_declined" or bucket(f"{task} {n}", part) == 0
    ]
    pool = get_context("fork").Pool(num_workers, ExampleMaker.take, (assets,))
    result = pool.map_async(ExampleMaker.make, jobs, chunksize=32)

    def wait() -> list[Example]:
        examples = result.get()
        pool.terminate()
        return examples

    return wait


def held_out(assets: Assets, num_workers: int, part: int = 1) -> list[Example]:
    """All held-out examples, or one in `part` of them."""
    return held_out_later(assets, num_workers, part)()


def normalise(tiles: Tensor) -> Tensor:
    """uint8 [..., S, S, 3] to float [N, 3, S, S] with ImageNet's mean and deviation."""
    mean, std = (torch.tensor(v, device=tiles.device) * 255 for v in (MEAN, STD))
    pixels = (tiles.flatten(0, -4).float() - mean) / std
    return pixels.permute(0, 3, 1, 2)


@torch.no_grad()
def generate(
    model: DemoModel, writer: Writer, prompts: list[list[int]], tiles: np.ndarray, device: str
) -> list[str]:
    """Greedy answers to prompts that all have the same number of tiles."""
    end = writer.tokenizer.token_to_id("<|im_end|>")
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    ids = torch.zeros((len(prompts), int(lengths.max())), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    caches = [LayerCache(lengths, MAX_NEW_TOKENS) for _ in range(model.config.text_layers)]
    text = model.language_model.model
    pixels = normalise(torch.from_numpy(tiles).to(device))
    hidden = text(model.embed(ids.to(device), pixels, writer.image_id), caches=caches)
    last = hidden[torch.arange(len(prompts), device=device), lengths - 1]
    drawn = []
    for step in range(MAX_NEW_TOKENS):
        token = model.head(last).argmax(-1)
        drawn.append(token)
        if step % 8 == 7 and all(end in row for row in torch.stack(drawn, 1).tolist()):
            break
        hidden = text(text.embed_tokens(token)[:, None], (lengths + step)[:, None], caches)
        last = hidden[:, 0]
    rows = torch.stack(drawn, 1).tolist()
    cut = [row[: row.index(end)] if end in row else row for row in rows]
    return writer.tokenizer.decode_batch(cut)


def batches(examples: list[Example], tiles_at_once: int) -> Iterator[list[int]]:
    """Indices of examples with equally many tiles, few enough to compute together."""
    groups = defaultdict(list)
    for index, item in enumerate(examples):
        groups[len(item.tiles)].append(index)
    for num_tiles, indices in groups.items():
        step = tiles_at_once // num_tiles
        for start in range(0, len(indices), step):
            yield indices[start : start + step]


def answer_all(
    model: DemoModel, tokenizer: Tokenizer, examples: list[Example], device: str
) -> list[str]:
    """The model's answer to every example, in order."""
    writer, answers = Writer(tokenizer), [""] * len(examples)
    model.eval()
    for indices in batches(examples, TILES_AT_ONCE[device]):
        chosen = [examples[i] for i in indices]
        prompts = [writer.prompt(e.question, [len(e.tiles)]) for e in chosen]
        tiles = np.concatenate([e.tiles for e in chosen])
        for index, text in zip(
            indices, generate(model, writer, prompts, tiles, device), strict=True
        ):
            answers[index] = text
    model.train()
    return answers


def score(examples: list[Example], answers: list[str]) -> dict[str, float]:
    """Share of exact answers by task, for one and for several tiles; drawings declined."""
    right = defaultdict(list)
    for item, answer in zip(examples, answers, strict=True):
        if item.task != "clip_art":
            hit = answer.casefold() == item.answer.casefold()
            right[item.task].append(hit)
            right[f"{item.task}/{'one tile' if len(item.tiles) == 1 else 'tiled'}"].append(hit)
        if item.task in {"seen_drawings", "unseen_style", "clip_art"}:
            right["drawings_declined"].append(answer == DECLINE)
            right[f"{item.task}/declined"].append(answer == DECLINE)
    return {task: float(np.mean(hits)) for task, hits in sorted(right.items())}


def interval_by_source(
    examples: list[Example], answers: list[str], task: str
) -> tuple[float, float]:
    """95 % bootstrap interval of a task's accuracy, drawing whole sources."""
    by_source = defaultdict(list)
    for item, answer in zip(examples, answers, strict=True):
        if item.task == task:
            by_source[item.source].append(answer.casefold() == item.answer.casefold())
    means = np.array([np.mean(hits) for hits in by_source.values()])
    rng = np.random.default_rng(0)
    drawn = rng.choice(means, (4000, len(means))).mean(1)
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))
