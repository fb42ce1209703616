"""One sequence's state in the scheduler; torch-free."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator

from lightvl.engine.kv_blocks import PageContent, Parent, PictureSpan
from lightvl.messages import AddRequest
from lightvl.types import ImageSlot

PICTURE_ID = 0
"""Stands for every picture token; what it shows is told by the picture's key and the offset."""


class Sequence:
    """A request from arrival to end.

    Attributes:
        request_id: The front's name for it.
        order: (priority, turn, arrival); smaller runs earlier, the largest is preempted first.
        client: Who sent it; see `FairShare`.
        token_ids: Known tokens, prompt and drawn; picture tokens are `PICTURE_ID`.
        num_tokens: Known tokens and those drawn by steps whose results are still to come.
        max_len: The sequence ends when it has so many tokens.
        end_ids: Ids that end it.
        slot: Its slot while it runs, else -1.
        pages: Its page table; token i lies in page `i // page_size`.
        num_sent_pages: Pages of the table that the runner has been told.
        num_chained: Pages of the table that are cached or equal to cached ones.
        chain: What the page after those continues.
        num_computed: Tokens whose keys and values are in the pages once planned steps have run.
        num_joined: Tokens that were known when it took its slot; the rest is decoded one by one.
        held: Pictures held in the embedding cache, and the position behind their last token.
        announced: Whether the front knows that it was admitted.
        ended: Whether it has ended; results still to come are dropped.
        known_good: Whether it has no constraint or one whose grammar is ready.
        mask: What its next token may be, if it is constrained and that is known.
    """

    __slots__ = (
        "_image_ends",
        "announced",
        "chain",
        "client",
        "end_ids",
        "ended",
        "held",
        "images",
        "known_good",
        "mask",
        "max_len",
        "namespace",
        "num_chained",
        "num_computed",
        "num_joined",
        "num_sent_pages",
        "num_tokens",
        "order",
        "pages",
        "prompt_len",
        "request_id",
        "sampling",
        "slot",
        "token_ids",
    )

    def __init__(
        self,
        request: AddRequest,
        turn: int,
        arrival: int,
        end_ids: frozenset[int],
        max_total_len: int,
        namespace: tuple[bytes, int],
    ) -> None:
        self.request_id = request.request_id
        self.sampling = request.sampling
        self.images = request.images
        self.order = (request.priority, turn, arrival)
        self.client = request.client
        self.token_ids = _with_picture_ids(request.token_ids, request.images)
        self.prompt_len = self.num_tokens = len(self.token_ids)
        self.max_len = min(self.prompt_len + request.sampling.max_new_tokens, max_total_len)
        self.end_ids = end_ids
        self.namespace = namespace
        self.announced = False
        self.ended = False
        self.known_good = request.sampling.constraint is None
        self.mask: bytes | None = None
        self._image_ends = [image.start + image.num_tokens for image in request.images]
        self.leave()

    def leave(self) -> None:
        """Forgets all that running gave it; the caller has given that back."""
        self.slot = -1
        self.pages: list[int] = []
        self.num_sent_pages = self.num_chained = self.num_computed = self.num_joined = 0
        self.chain: Parent = self.namespace
        self.held: dict[bytes, int] = {}

    @property
    def num_generated(self) -> int:
        """Known tokens that were drawn."""
        return len(self.token_ids) - self.prompt_len

    @property
    def lacks_mask(self) -> bool:
        """Whether it is constrained and what its next token may be is still to come."""
        return self.mask is None and self.sampling.constraint is not None

    @property
    def is_decoding(self) -> bool:
        """Whether all it knew at admission is computed, so that it streams."""
        return self.num_computed >= self.num_joined > 0

    def images_within(self, begin: int, end: int) -> Iterator[tuple[ImageSlot, int, int]]:
        """Yields pictures with tokens in [begin, end), and the span of positions they share."""
        for i in range(bisect_right(self._image_ends, begin), len(self.images)):
            image = self.images[i]
            if image.start >= end:
                return
            yield image, max(begin, image.start), min(end, self._image_ends[i])

    def images_after(self, position: int) -> list[ImageSlot]:
        """Returns the pictures that have a token at `position` or behind it."""
        return self.images[bisect_right(self._image_ends, position) :]

    def page_content(self, page: int, page_size: int) -> PageContent:
        """Returns what page number `page` of the table holds once it is full."""
        begin, end = page * page_size, (page + 1) * page_size
        ids = array("i", self.token_ids[begin:end]).tobytes()
        if not self._image_ends or begin >= self._image_ends[-1]:
            return PageContent(ids, ())
        spans = tuple(
            PictureSpan(first - begin, last - first, image.key, first - image.start)
            for image, first, last in self.images_within(begin, end)
        )
        return PageContent(ids, spans)

    def counted_ids(self) -> list[int]:
        """Returns the ids that penalties count when it takes a slot."""
        if not self.sampling.penalized:
            return []
        drawn = self.token_ids[self.prompt_len :]
        if not self.sampling.input_penalty:
            return drawn
        text = []
        position = 0
        for image in self.images:
            text += self.token_ids[position : image.start]
            position = image.start + image.num_tokens
        return text + self.token_ids[position : self.prompt_len] + drawn


def _with_picture_ids(token_ids: list[int], images: list[ImageSlot]) -> list[int]:
    ids = list(token_ids)
    for image in images:
        ids[image.start : image.start + image.num_tokens] = [PICTURE_ID] * image.num_tokens
    return ids
