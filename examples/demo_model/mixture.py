"""How often each kind of scene is rendered, for how many tiles."""

from collections.abc import Callable
from random import Random

import figures
import scenes
from assets import Assets
from canvas import TILE, pick_size
from scenes import Scene

Maker = Callable[..., Scene]
TEXT_ONLY, TWO_PICTURES = 0, 2
# Tiles of a sample -> its share of all samples. A step holds about the same number of tiles of
# any kind, so that several tiles take a larger share of the time than of the samples.
KINDS = {1: 0.86, 3: 0.04, 4: 0.008, 5: 0.05, TWO_PICTURES: 0.022, TEXT_ONLY: 0.02}
ONE_PICTURE: tuple[tuple[Maker, float], ...] = (
    (scenes.named_drawing, 30),
    (scenes.any_clip_art, 1),
    (scenes.several_drawings, 4),
    (scenes.flag, 5),
    (scenes.photo, 11),
    (scenes.plain, 0.5),
    (scenes.easy_vqa, 1.5),
    (figures.single_shape, 6),
    (figures.placed_thing, 6),
    (figures.related_shapes, 11),
    (figures.counting, 11),
    (figures.written, 19),
)
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
    maker = rng.choices(MAKERS, weights)[0]
    while kind > 1 and maker is scenes.easy_vqa:
        maker = rng.choices(MAKERS, weights)[0]
    return maker(assets, assets.train, pick_size(kind, rng), rng)
