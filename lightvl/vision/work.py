"""Units of vision work, as the scheduler hands them to the pool; torch-free."""

import msgspec

from lightvl.types import TileGrid


class PictureWork(msgspec.Struct, frozen=True):
    """A decoded picture to resize, cut and normalise; its tiles follow in `TileWork`."""

    key: bytes
    offset: int
    width: int
    height: int
    grid: TileGrid


class TileWork(msgspec.Struct, frozen=True, array_like=True):
    """Tile number `tile` of the picture `key` goes through the tower into arena page `page`."""

    key: bytes
    tile: int
    page: int
