"""What running sequences hold: pages of KV and pictures' embeddings; torch-free."""

from lightvl.config import EngineConfig
from lightvl.engine.kv_blocks import PagePool
from lightvl.engine.plan import PictureRows
from lightvl.engine.sequence import Sequence
from lightvl.messages import PixelsDone, ToFront
from lightvl.vision.embedding_cache import EmbeddingCache


class Holdings:
    """Moves pages and pictures between sequences and the two caches.

    Args:
        config: The engine's configuration.
        pool: The KV pages.
        pictures: The embedding arena.
        outbox: Takes a `PixelsDone` for pixels that will not be read any more.
    """

    def __init__(
        self,
        config: EngineConfig,
        pool: PagePool,
        pictures: EmbeddingCache,
        outbox: list[ToFront],
    ) -> None:
        self._page_size = config.page_size
        self._prefix_cache = config.prefix_cache
        self._tile_len = config.model.tiling.tokens_per_tile if config.model.tiling else 0
        self._pool = pool
        self._pictures = pictures
        self._outbox = outbox

    def fit(self, seq: Sequence) -> bool:
        """Whether a sequence's pictures are as long as the model says and fit the arena."""
        return self._pictures.fits(seq.images) and all(
            image.num_tokens == image.grid.num_tiles * self._tile_len for image in seq.images
        )

    def release(self, seq: Sequence) -> None:
        """Gives back everything."""
        self.let_go(seq, seq.max_len)
        self._pool.release(seq.pages)

    # --- KV pages ----------------------------------------------------------------------------

    def num_pages(self, num_tokens: int) -> int:
        """Returns how many pages hold so many tokens."""
        return -(-num_tokens // self._page_size)

    def grow(self, seq: Sequence, num_pages: int) -> None:
        """Appends pages to a table; they must be available."""
        for _ in range(num_pages):
            seq.pages.append(self._pool.allocate())

    def match(self, seq: Sequence) -> None:
        """Extends a table by cached pages; the last known token is always computed."""
        size = self._page_size
        if not self._prefix_cache or seq.num_computed != seq.num_chained * size:
            return
        while (seq.num_chained + 1) * size < seq.num_joined:
            found = self._pool.find(seq.chain, seq.page_content(seq.num_chained, size))
            if found is None:
                break
            page, seq.chain = found
            seq.pages.append(page)
            seq.num_chained += 1
            seq.num_computed += size
        self.let_go(seq, seq.num_computed)

    def publish(self, seq: Sequence) -> None:
        """Caches the pages that are full and whose ids are known."""
        if not self._prefix_cache:
            return
        size = self._page_size
        num_full = min(seq.num_computed, len(seq.token_ids)) // size
        while seq.num_chained < num_full:
            content = seq.page_content(seq.num_chained, size)
            seq.chain = self._pool.publish(seq.pages[seq.num_chained], seq.chain, content)
            seq.num_chained += 1

    # --- pictures ----------------------------------------------------------------------------

    def acquire(self, seq: Sequence) -> list[bytes] | None:
        """Holds every picture that has tokens left to compute, or none.

        Returns:
            The keys whose pixels this sequence must supply; None if there is no room now.
        """
        images = seq.images_after(seq.num_computed)
        missing = self._pictures.acquire(seq.request_id, images)
        if missing is not None:
            seq.held = {image.key: image.start + image.num_tokens for image in images}
        return missing

    def let_go(self, seq: Sequence, position: int) -> None:
        """Gives back the pictures that lie wholly before `position`."""
        for key in [key for key, end in seq.held.items() if end <= position]:
            del seq.held[key]
            unread = self._pictures.release(seq.request_id, key)
            if unread is not None:
                self._outbox.append(PixelsDone(key, unread.offset))

    def readable_end(self, seq: Sequence) -> int:
        """Returns the position behind the last token whose input there is."""
        for image in seq.images_after(seq.num_computed):
            picture = self._pictures[image.key]
            if picture.num_tiles_left:
                return image.start + picture.num_encoded * self._tile_len
        return seq.num_joined

    def picture_rows(self, seq: Sequence, begin: int, end: int) -> list[PictureRows]:
        """Returns where in the arena the picture tokens in [begin, end) come from."""
        rows = []
        for image, first, last in seq.images_within(begin, end):
            pages = self._pictures[image.key].pages
            while first < last:
                tile, offset = divmod(first - image.start, self._tile_len)
                num_tokens = min(last - first, self._tile_len - offset)
                arena_row = pages[tile] * self._tile_len + offset
                rows.append(PictureRows(first - begin, num_tokens, arena_row))
                first += num_tokens
        return rows
