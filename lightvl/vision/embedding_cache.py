"""Which pictures' embeddings lie in the arena, and which are still to come; torch-free.

The arena is cut into pages of one tile. A picture enters when a request first needs it, and stays
while requests hold it; afterwards it is evicted least recently used first, when pages or the
number of pictures run short. It is asked for and encoded once, however many requests wait.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from lightvl.types import ImageSlot, TileGrid


@dataclass(frozen=True, slots=True)
class PixelRegion:
    """RGB uint8 [height, width, 3] at `offset` in the shared-memory arena."""

    offset: int
    width: int
    height: int


@dataclass(slots=True, eq=False)
class Picture:
    """A picture in the cache.

    Attributes:
        pages: Arena page of each of its tiles.
        holders: Requests that need its embeddings, in order of arrival.
        asked: The request asked for its pixels; None once they are here.
        pixels: Where they are; None before, and once the tower has begun.
        num_encoded: Tiles given to the tower, in order; their embeddings can be read by anything
            that runs later.
    """

    key: bytes
    grid: TileGrid
    pages: list[int]
    asked: int | None
    holders: dict[int, None] = field(default_factory=dict)
    pixels: PixelRegion | None = None
    num_encoded: int = 0

    @property
    def num_tiles_left(self) -> int:
        """Tiles that the tower has not seen."""
        return len(self.pages) - self.num_encoded


class EmbeddingCache:
    """The arena's index.

    Args:
        num_pages: Pages of the arena, one tile each.
        capacity: Pictures kept at most.
    """

    def __init__(self, num_pages: int, capacity: int) -> None:
        self.num_pages = num_pages
        self.capacity = capacity
        self.num_evictions = 0
        self.encodable: dict[bytes, Picture] = {}
        """Pictures whose pixels are here and whose tiles are not all encoded, oldest first."""
        self._pictures: dict[bytes, Picture] = {}
        self._free = list(range(num_pages - 1, -1, -1))
        self._unreferenced: OrderedDict[bytes, Picture] = OrderedDict()
        self._num_unreferenced_pages = 0

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, key: bytes) -> Picture:
        return self._pictures[key]

    @property
    def num_held(self) -> int:
        """Pictures that a request holds."""
        return sum(bool(picture.holders) for picture in self._pictures.values())

    @property
    def num_used_pages(self) -> int:
        """Arena pages that belong to a picture."""
        return self.num_pages - len(self._free)

    def fits(self, images: Iterable[ImageSlot]) -> bool:
        """Whether these pictures fit an otherwise empty cache."""
        grids = {image.key: image.grid for image in images}
        num_tiles = sum(grid.num_tiles for grid in grids.values())
        return len(grids) <= self.capacity and num_tiles <= self.num_pages

    def acquire(self, request_id: int, images: Iterable[ImageSlot]) -> list[bytes] | None:
        """Holds all these pictures for a request, or none of them.

        Returns:
            The keys that the request must supply pixels for, because the cache has neither their
            embeddings nor asked anyone else; None if there is no room now.
        """
        grids = {image.key: image.grid for image in images}
        found = [self._pictures[key] for key in grids if key in self._pictures]
        missing = [key for key in grids if key not in self._pictures]
        num_pages = sum(grids[key].num_tiles for key in missing)
        if not self._has_room(found, num_pages, len(missing)):
            return None
        for picture in found:
            self._hold(picture, request_id)
        while len(self._free) < num_pages or len(self) + len(missing) > self.capacity:
            self._evict()
            self.num_evictions += 1
        for key in missing:
            pages = [self._free.pop() for _ in range(grids[key].num_tiles)]
            self._pictures[key] = Picture(key, grids[key], pages, request_id, {request_id: None})
        return missing

    def release(self, request_id: int, key: bytes) -> PixelRegion | None:
        """Gives back a request's hold.

        A picture that the tower has begun is finished and kept even if nobody holds it; one that
        it has not is dropped then.

        Returns:
            Pixels that will not be read any more.
        """
        picture = self._pictures[key]
        del picture.holders[request_id]
        if picture.holders:
            return None
        if picture.num_encoded == 0:
            return self._drop(picture)
        if picture.num_tiles_left == 0:
            self._rest(picture)
        return None

    def next_asked(self, request_id: int, key: bytes) -> int | None:
        """Returns who must supply a picture's pixels now that this request has ended, if anyone."""
        picture = self._pictures.get(key)
        if picture is None or picture.asked != request_id:
            return None
        picture.asked = next(iter(picture.holders))
        return picture.asked

    def supply(self, key: bytes, pixels: PixelRegion) -> bool:
        """Takes a picture's pixels; returns False if nobody waits for them."""
        picture = self._pictures.get(key)
        if picture is None or picture.asked is None:
            return False
        picture.asked = None
        picture.pixels = pixels
        self.encodable[key] = picture
        return True

    def encode(self, picture: Picture, num_tiles: int) -> None:
        """Notes that the tower is given the next `num_tiles` tiles of a picture."""
        picture.pixels = None
        picture.num_encoded += num_tiles
        if picture.num_tiles_left == 0:
            del self.encodable[picture.key]
            if not picture.holders:
                self._rest(picture)

    def flush(self) -> None:
        """Forgets every unreferenced picture."""
        while self._unreferenced:
            self._evict()

    def _has_room(self, found: list[Picture], num_pages: int, num_pictures: int) -> bool:
        resting = [picture for picture in found if picture.key in self._unreferenced]
        num_evictable = len(self._unreferenced) - len(resting)
        num_evictable_pages = self._num_unreferenced_pages - sum(len(p.pages) for p in resting)
        return (
            num_pages <= len(self._free) + num_evictable_pages
            and len(self) + num_pictures - num_evictable <= self.capacity
        )

    def _hold(self, picture: Picture, request_id: int) -> None:
        if self._unreferenced.pop(picture.key, None) is not None:
            self._num_unreferenced_pages -= len(picture.pages)
        picture.holders[request_id] = None

    def _rest(self, picture: Picture) -> None:
        self._unreferenced[picture.key] = picture
        self._num_unreferenced_pages += len(picture.pages)

    def _evict(self) -> None:
        _, picture = self._unreferenced.popitem(last=False)
        self._num_unreferenced_pages -= len(picture.pages)
        self._drop(picture)

    def _drop(self, picture: Picture) -> PixelRegion | None:
        del self._pictures[picture.key]
        self.encodable.pop(picture.key, None)
        self._free += picture.pages
        return picture.pixels
