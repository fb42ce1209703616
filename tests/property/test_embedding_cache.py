"""The embedding cache against a model of sets and lists."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lightvl.types import ImageSlot, TileGrid
from lightvl.vision.embedding_cache import EmbeddingCache, PixelRegion
from lightvl.vision.packing import pack_tiles

NUM_PAGES = 9
CAPACITY = 4
REGION = PixelRegion(64, 8, 8)


def slot(number: int) -> ImageSlot:
    """Returns picture `number`: 1 to 4 tiles."""
    grid = TileGrid(1 + number % 4, 1, False)
    return ImageSlot(bytes([number]), 0, grid.num_tiles, grid, 8, 8)


@dataclass
class ModelPicture:
    """A picture as the model sees it."""

    num_tiles: int
    asked: int | None
    holders: list[int] = field(default_factory=list)
    num_encoded: int = 0

    @property
    def idle(self) -> bool:
        return not self.holders


class CacheMachine(RuleBasedStateMachine):
    """Requests that hold and give back pictures while the tower works."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = EmbeddingCache(NUM_PAGES, CAPACITY)
        self.pictures: dict[bytes, ModelPicture] = {}
        self.recent: list[bytes] = []
        """Encoded pictures that nobody holds, least recently held first."""
        self.requests: dict[int, set[bytes]] = {}
        self.num_requests = 0

    @rule(numbers=st.lists(st.integers(0, 7), min_size=1, max_size=4))
    def request(self, numbers: list[int]) -> None:
        images = [slot(number) for number in numbers]
        keys = list(dict.fromkeys(image.key for image in images))
        new = {key: slot(key[0]).grid.num_tiles for key in keys if key not in self.pictures}
        request_id = self.num_requests
        self.num_requests += 1
        missing = self.cache.acquire(request_id, images)
        evictable = [key for key in self.recent if key not in keys]
        room = NUM_PAGES - sum(p.num_tiles for p in self.pictures.values())
        room += sum(self.pictures[key].num_tiles for key in evictable)
        places = CAPACITY - len(self.pictures) + len(evictable)
        assert (missing is not None) == (sum(new.values()) <= room and len(new) <= places)
        if missing is None:
            return
        assert missing == list(new)
        self.evict(evictable, sum(new.values()), len(new))
        for key in keys:
            picture = self.pictures.setdefault(key, ModelPicture(new.get(key, 0), request_id))
            picture.holders.append(request_id)
        self.recent = [key for key in self.recent if key not in keys]
        self.requests[request_id] = set(keys)

    def evict(self, evictable: list[bytes], num_pages: int, num_new: int) -> None:
        """Drops the least recently held pictures until the new ones fit."""
        for key in evictable:
            used = sum(p.num_tiles for p in self.pictures.values())
            if used + num_pages <= NUM_PAGES and len(self.pictures) + num_new <= CAPACITY:
                return
            del self.pictures[key]
            self.recent.remove(key)

    @precondition(lambda self: any(self.requests.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        held = [(r, key) for r, keys in self.requests.items() for key in sorted(keys)]
        request_id, key = data.draw(st.sampled_from(held))
        picture = self.pictures[key]
        unread = self.cache.release(request_id, key)
        self.requests[request_id].remove(key)
        picture.holders.remove(request_id)
        dropped = picture.idle and picture.num_encoded == 0
        assert unread == (REGION if dropped and picture.asked is None else None)
        if dropped:
            del self.pictures[key]
        elif picture.idle and picture.num_encoded == picture.num_tiles:
            self.recent.append(key)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """A request ends: it gives back everything and no longer supplies pixels."""
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        for key in sorted(self.requests[request_id]):
            self.cache.release(request_id, key)
            picture = self.pictures[key]
            picture.holders.remove(request_id)
            if picture.idle and picture.num_encoded == 0:
                del self.pictures[key]
            elif picture.idle and picture.num_encoded == picture.num_tiles:
                self.recent.append(key)
        del self.requests[request_id]
        for key, picture in self.pictures.items():
            asked = self.cache.next_asked(request_id, key)
            if picture.asked == request_id:
                picture.asked = picture.holders[0]
                assert asked == picture.asked
            else:
                assert asked is None

    @rule(number=st.integers(0, 7))
    def supply(self, number: int) -> None:
        picture = self.pictures.get(bytes([number]))
        wanted = picture is not None and picture.asked is not None
        assert self.cache.supply(bytes([number]), REGION) == wanted
        if picture is not None:
            picture.asked = None

    @rule(max_tiles=st.integers(1, 6), max_pictures=st.sampled_from([None, 1, 2]))
    def encode(self, max_tiles: int, max_pictures: int | None) -> None:
        queue = [picture.key for picture in self.cache.encodable.values()]
        begun, tiles = pack_tiles(self.cache, max_tiles, max_pictures)
        assert len(tiles) <= max_tiles
        keys = list(dict.fromkeys(tile.key for tile in tiles))
        assert keys == queue[: len(keys)]
        assert max_pictures is None or len(keys) <= max_pictures
        assert [work.key for work in begun] == [
            key for key in keys if self.pictures[key].num_encoded == 0
        ]
        for tile in tiles:
            picture = self.pictures[tile.key]
            assert tile.tile == picture.num_encoded
            assert tile.page == self.cache[tile.key].pages[tile.tile]
            picture.num_encoded += 1
            if picture.idle and picture.num_encoded == picture.num_tiles:
                self.recent.append(tile.key)

    @rule()
    def flush(self) -> None:
        self.cache.flush()
        for key in self.recent:
            del self.pictures[key]
        self.recent = []

    @invariant()
    def agrees(self) -> None:
        assert len(self.cache) == len(self.pictures) <= CAPACITY
        pages: list[int] = []
        for key, expected in self.pictures.items():
            picture = self.cache[key]
            assert list(picture.holders) == expected.holders
            assert picture.asked == expected.asked
            assert picture.num_tiles_left == expected.num_tiles - expected.num_encoded
            pages += picture.pages
        assert len(set(pages)) == len(pages) == self.cache.num_used_pages <= NUM_PAGES
        waiting = {
            key
            for key, p in self.pictures.items()
            if p.asked is None and p.num_encoded < p.num_tiles
        }
        assert set(self.cache.encodable) == waiting


TestEmbeddingCache = CacheMachine.TestCase
TestEmbeddingCache.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
