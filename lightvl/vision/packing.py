"""Which tiles go through the tower together; torch-free."""

from lightvl.vision.embedding_cache import EmbeddingCache
from lightvl.vision.work import PictureWork, TileWork

MICRO_BATCH_TILES = 16
"""Tiles of one tower batch at most; a published checkpoint's largest picture has 13."""

STREAMING_TILES = 4
"""Tiles of one tower batch while streams run and nothing is known yet of what a tile costs."""


def pack_tiles(
    cache: EmbeddingCache, max_tiles: int, max_pictures: int | None
) -> tuple[list[PictureWork], list[TileWork]]:
    """Takes the next tiles of waiting pictures, oldest first, for one tower batch.

    A picture that doesn't fit whole is begun; its other tiles follow in later batches.

    Args:
        cache: Says which pictures wait, and is told which tiles are taken.
        max_tiles: Tiles in the batch at most.
        max_pictures: Pictures in the batch at most; None is no bound.

    Returns:
        The pictures that are begun, and the tiles.
    """
    begun: list[PictureWork] = []
    tiles: list[TileWork] = []
    for picture in list(cache.encodable.values())[:max_pictures]:
        if len(tiles) == max_tiles:
            break
        if (pixels := picture.pixels) is not None:
            where = (pixels.offset, pixels.width, pixels.height)
            begun.append(PictureWork(picture.key, *where, picture.grid))
        first = picture.num_encoded
        cache.encode(picture, min(picture.num_tiles_left, max_tiles - len(tiles)))
        for tile in range(first, picture.num_encoded):
            tiles.append(TileWork(picture.key, tile, picture.pages[tile]))
    return begun, tiles
