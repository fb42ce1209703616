"""What makes two pictures the same."""

import hashlib
import struct
from collections import OrderedDict

from lightvl.config import TilingConfig
from lightvl.types import TileGrid

_PARAMETERS = struct.Struct("<4I6d")


def picture_key(
    sha256: bytes, grid: TileGrid, tiling: TilingConfig, namespace: bytes = b""
) -> bytes:
    """Returns the key under which a picture's embeddings are kept.

    It covers all that decides them: the bytes as sent, how they are cut (so the policy and every
    limit that led there), resized and normalised, and who may share them.

    Args:
        sha256: SHA-256 of the picture's bytes as sent, 32 bytes.
        grid: How it is cut.
        tiling: Tile size, mean and standard deviation.
        namespace: Those with another one never share; see `--cache_namespace`.

    Returns:
        32 bytes.
    """
    parameters = _PARAMETERS.pack(
        grid.cols, grid.rows, grid.thumbnail, tiling.tile_size, *tiling.mean, *tiling.std
    )
    return hashlib.sha256(sha256 + parameters + namespace).digest()


class ConflictCounter:
    """Counts pictures whose MD5 is that of another picture with other bytes.

    Args:
        capacity: Digests remembered, the least recently seen forgotten first.

    Attributes:
        total: Conflicts seen.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self.total = 0
        self._capacity = capacity
        self._sha256_of: OrderedDict[str, bytes] = OrderedDict()

    def note(self, md5: str, sha256: bytes) -> None:
        """Takes note of a picture's two digests."""
        self.total += self._sha256_of.get(md5, sha256) != sha256
        self._sha256_of[md5] = sha256
        self._sha256_of.move_to_end(md5)
        if len(self._sha256_of) > self._capacity:
            self._sha256_of.popitem(last=False)
