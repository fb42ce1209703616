"""How often each kind of scene is rendered, for how many tiles."""

from collections.abc import Callable
from random import Random

import figures
import photographs
import scenes
from assets import Assets
from canvas import TILE, pick_size
from scenes import Scene

Maker = Callable[..., Scene]
TEXT_ONLY, TWO_PICTURES = 0, 2
# Tiles of a sample -> its share of all samples. A step holds about the same number of tiles of
# any kind, so that several tiles take a larger share of the time than of the samples.
KINDS = {1: 0.8, 3: 0.065, 4: 0.015, 5: 0.08, TWO_PICTURES: 0.02, TEXT_ONLY: 0.02}
ONE_PICTURE: tuple[tuple[Maker, float], ...] = (
    (scenes.named_drawing, 34),
    (scenes.any_clip_art, 1),
    (scenes.several_drawings, 3),
    (scenes.flag, 3.5),
    (photographs.photo, 15),
    (photographs.photo_of_things, 7),
    (scenes.plain, 0.5),
    (scenes.easy_vqa, 1.5),
    (figures.single_shape, 4),
    (figures.placed_thing, 5),
    (figures.related_shapes, 20),
    (figures.counting, 21),
    (figures.written, 9),
)
# What several tiles make harder is shown more often in several tiles.
MORE_OFTEN_TILED = {"placed_thing": 1.5, "related_shapes": 1.8, "counting": 1.5}
MAKERS = tuple(maker for maker, _ in ONE_PICTURE)
SHARES = {maker.__name__: share for maker, share in ONE_PICTURE}


def render(assets: Assets, kind: int, rng: Random, shares: dict[str, float] = SHARES) -> Scene:
    """A training scene whose pictures together have `kind` tiles (0: no picture).

    `shares` gives the weight of each kind of scene by its function's name.
    """
    if kind == TEXT_ONLY:
        return scenes.small_talk(assets, assets.train, (TILE, TILE), rng)
    if kind == TWO_PICTURES:
        return scenes.two_pictures(assets, assets.train, (TILE, TILE), rng)
    weights = [shares.get(maker.__name__, 0.0) for maker in MAKERS]
    if kind > 1:
        more = [MORE_OFTEN_TILED.get(maker.__name__, 1.0) for maker in MAKERS]
        weights = [w * m for w, m in zip(weights, more, strict=True)]
    maker = rng.choices(MAKERS, weights)[0]
    while kind > 1 and maker is scenes.easy_vqa:
        maker = rng.choices(MAKERS, weights)[0]
    return maker(assets, assets.train, pick_size(kind, rng), rng)
