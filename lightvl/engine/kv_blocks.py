"""KV pages: who holds them, which are found again by content, and which is evicted; torch-free.

A full page is cached under what it continues and what it holds. The index is a dict over that
very content, so a lookup is hashed and then compared: two different prefixes can't share a page,
whatever their hashes. A page continues another by that one's serial, which is never used twice,
so a chain of matches proves the whole prefix equal.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

Parent = int | tuple[bytes, int]
"""What a page continues: the serial of the page before, or the namespace of a first page."""


class PictureSpan(NamedTuple):
    """`num_tokens` tokens of a page, from `offset` on, are those of a picture from `first` on."""

    offset: int
    num_tokens: int
    picture_key: bytes
    first: int


class PageContent(NamedTuple):
    """What a full page holds: its ids (native int32) and which of them are picture tokens."""

    ids: bytes
    pictures: tuple[PictureSpan, ...]


class PagePool:
    """Reference-counted KV pages with an index of the cached ones.

    A page is free, held (by one or more sequences), or cached and unreferenced; the latter are
    evicted least recently used first when nothing is free.

    Args:
        num_pages: Pages there are, numbered from 0.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._num_holders = [0] * num_pages
        self._index: dict[tuple[Parent, PageContent], int] = {}
        self._keys: list[tuple[Parent, PageContent] | None] = [None] * num_pages
        self._serials = [0] * num_pages
        self._unreferenced: OrderedDict[int, None] = OrderedDict()
        self._next_serial = count(1)

    @property
    def num_available(self) -> int:
        """Pages that `allocate` can hand out: free ones and unreferenced cached ones."""
        return len(self._free) + len(self._unreferenced)

    @property
    def num_cached(self) -> int:
        """Pages that a lookup can find."""
        return len(self._index)

    def allocate(self) -> int:
        """Returns a page, held once; evicts the least recently used cached one if need be.

        Raises:
            IndexError: No page is available.
        """
        if not self._free:
            self._evict()
        page = self._free.pop()
        self._num_holders[page] = 1
        return page

    def find(self, parent: Parent, content: PageContent) -> tuple[int, int] | None:
        """Returns the cached page with this prefix and its serial, and holds it once more."""
        page = self._index.get((parent, content))
        if page is None:
            return None
        if self._num_holders[page] == 0:
            del self._unreferenced[page]
        self._num_holders[page] += 1
        return page, self._serials[page]

    def publish(self, page: int, parent: Parent, content: PageContent) -> int:
        """Caches a held, full page and returns the serial that the page after it continues.

        If another page with the same prefix is cached already, that one stays and its serial is
        returned; `page` remains private.
        """
        key = (parent, content)
        cached = self._index.setdefault(key, page)
        if cached == page:
            self._keys[page] = key
            self._serials[page] = next(self._next_serial)
        return self._serials[cached]

    def release(self, pages: Sequence[int]) -> None:
        """Gives back one hold on each page of a sequence; later pages are evicted earlier."""
        for page in reversed(pages):
            self._num_holders[page] -= 1
            if self._num_holders[page] > 0:
                continue
            if self._keys[page] is None:
                self._free.append(page)
            else:
                self._unreferenced[page] = None

    def flush(self) -> None:
        """Forgets every unreferenced cached page."""
        while self._unreferenced:
            self._evict()

    def _evict(self) -> None:
        if not self._unreferenced:
            raise IndexError("no KV page is available")
        page, _ = self._unreferenced.popitem(last=False)
        key = self._keys[page]
        assert key is not None, "an unreferenced page is cached"
        del self._index[key]
        self._keys[page] = None
        self._free.append(page)
