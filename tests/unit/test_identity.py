"""Picture keys and the counter of MD5 conflicts."""

import hashlib

import msgspec
import pytest

from lightvl.config import TilingConfig
from lightvl.multimodal.identity import ConflictCounter, picture_key
from lightvl.types import TileGrid

TILING = TilingConfig(
    tile_size=448,
    tokens_per_tile=256,
    min_tiles=1,
    max_tiles=12,
    use_thumbnail=True,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
DIGEST = hashlib.sha256(b"a picture").digest()
GRID = TileGrid(2, 3, True)
KEY = picture_key(DIGEST, GRID, TILING)


def test_a_key_is_32_bytes_and_always_the_same() -> None:
    assert len(KEY) == 32
    assert picture_key(DIGEST, TileGrid(2, 3, True), TILING, b"") == KEY


@pytest.mark.parametrize(
    "grid", [TileGrid(3, 2, True), TileGrid(2, 3, False), TileGrid(1, 1, False)]
)
def test_another_grid_is_another_key(grid: TileGrid) -> None:
    assert picture_key(DIGEST, grid, TILING) != KEY


@pytest.mark.parametrize(
    "change",
    [{"tile_size": 224}, {"mean": (0.5, 0.456, 0.406)}, {"std": (0.229, 0.224, 0.5)}],
)
def test_another_preprocessing_is_another_key(change: dict[str, object]) -> None:
    assert picture_key(DIGEST, GRID, msgspec.structs.replace(TILING, **change)) != KEY


def test_a_limit_that_leads_to_the_same_grid_does_not_matter() -> None:
    assert picture_key(DIGEST, GRID, msgspec.structs.replace(TILING, max_tiles=6)) == KEY


def test_namespaces_share_nothing() -> None:
    keys = {picture_key(DIGEST, GRID, TILING, name) for name in (b"", b"a", b"b")}
    assert len(keys) == 3


def test_other_bytes_are_another_key() -> None:
    assert picture_key(hashlib.sha256(b"another").digest(), GRID, TILING) != KEY


def test_conflicts_are_counted_once_each_time_the_bytes_change() -> None:
    counter = ConflictCounter()
    for sha256 in (b"x", b"x", b"y", b"y", b"x"):
        counter.note("same md5", sha256)
    counter.note("other md5", b"z")
    assert counter.total == 2


def test_the_counter_forgets_the_oldest() -> None:
    counter = ConflictCounter(capacity=2)
    for md5 in ("a", "b", "a", "c"):  # b was seen longest ago
        counter.note(md5, b"1")
    counter.note("b", b"2")
    assert counter.total == 0
    counter.note("c", b"2")
    assert counter.total == 1
