"""The page pool against a model that keeps whole prefixes."""

from array import array
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lightvl.engine.kv_blocks import PageContent, PagePool, Parent, PictureSpan

NUM_PAGES = 6
ROOTS: list[Parent] = [(b"", 0), (b"salt", 0), (b"", 9)]
CONTENTS = [
    PageContent(array("i", [1, 2]).tobytes(), ()),
    PageContent(array("i", [0, 0]).tobytes(), ()),
    PageContent(array("i", [0, 0]).tobytes(), (PictureSpan(0, 2, b"a", 0),)),
    PageContent(array("i", [0, 0]).tobytes(), (PictureSpan(0, 2, b"b", 0),)),
    PageContent(array("i", [0, 0]).tobytes(), (PictureSpan(0, 2, b"a", 2),)),
]


@dataclass
class Table:
    """A sequence's pages, and what they must hold from the root on."""

    chain: Parent
    prefix: tuple[object, ...]
    pages: list[int] = field(default_factory=list)


class PoolMachine(RuleBasedStateMachine):
    """Sequences that match, fill, publish and release pages."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(NUM_PAGES)
        self.tables: list[Table] = []
        self.holds: dict[int, tuple[object, ...]] = {}
        """Whole prefix that a page was filled with last."""

    @rule(root=st.sampled_from(ROOTS))
    def start(self, root: Parent) -> None:
        self.tables.append(Table(root, (root,)))

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), content=st.sampled_from(CONTENTS))
    def extend(self, data: st.DataObject, content: PageContent) -> None:
        """Matches the next page if it is cached, else fills one and publishes it."""
        table = data.draw(st.sampled_from(self.tables))
        prefix = (*table.prefix, content)
        num_available = self.pool.num_available
        found = self.pool.find(table.chain, content)
        if found is not None:
            page, table.chain = found
            assert self.holds[page] == prefix
        elif num_available == 0:
            with pytest.raises(IndexError):
                self.pool.allocate()
            return
        else:
            page = self.pool.allocate()
            assert not any(page in other.pages for other in self.tables), "the page is in use"
            assert self.pool.num_available == num_available - 1
            self.holds[page] = prefix
            table.chain = self.pool.publish(page, table.chain, content)
        table.prefix = prefix
        table.pages.append(page)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        self.tables.remove(table)
        self.pool.release(table.pages)

    @rule()
    def flush(self) -> None:
        self.pool.flush()
        held = {page for table in self.tables for page in table.pages}
        assert self.pool.num_cached <= len(held)

    @invariant()
    def available_is_what_nobody_holds(self) -> None:
        held = {page for table in self.tables for page in table.pages}
        assert self.pool.num_available == NUM_PAGES - len(held)

    @invariant()
    def held_pages_keep_their_prefix(self) -> None:
        for table in self.tables:
            for i, page in enumerate(table.pages):
                assert self.holds[page] == table.prefix[: i + 2]


TestPagePool = PoolMachine.TestCase
TestPagePool.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def fill(pool: PagePool, contents: list[PageContent], root: Parent = ROOTS[0]) -> list[int]:
    """Fills and publishes pages of one sequence."""
    pages = []
    chain = root
    for content in contents:
        pages.append(pool.allocate())
        chain = pool.publish(pages[-1], chain, content)
    return pages


def test_the_tail_of_a_prefix_is_evicted_before_its_head() -> None:
    pool = PagePool(3)
    pages = fill(pool, [CONTENTS[0], CONTENTS[1], CONTENTS[0]])
    pool.release(pages)
    assert [pool.allocate() for _ in range(3)] == pages[::-1]


def test_the_prefix_used_last_stays_longest() -> None:
    pool = PagePool(2)
    first, second = fill(pool, [CONTENTS[0]]), fill(pool, [CONTENTS[1]])
    pool.release(first)
    pool.release(second)
    found = pool.find(ROOTS[0], CONTENTS[0])
    assert found is not None
    pool.release([found[0]])
    assert pool.allocate() == second[0]


def test_the_same_prefix_computed_twice_is_cached_once() -> None:
    pool = PagePool(4)
    first, second = fill(pool, CONTENTS[:2]), fill(pool, CONTENTS[:2])
    assert pool.num_cached == 2
    pool.release(second)
    assert pool.num_available == 2
    found = pool.find(ROOTS[0], CONTENTS[0])
    assert found is not None
    assert found[0] == first[0]


class Colliding(bytes):
    """Bytes that all have the same hash."""

    def __hash__(self) -> int:
        return 7


@given(st.lists(st.binary(max_size=3), min_size=2, max_size=6, unique=True))
def test_equal_hashes_never_share_a_page(ids: list[bytes]) -> None:
    pool = PagePool(len(ids))
    contents = [PageContent(Colliding(i), ()) for i in ids]
    pages = [fill(pool, [content])[0] for content in contents[:-1]]
    assert pool.find(ROOTS[0], contents[-1]) is None
    for content, page in zip(contents[:-1], pages, strict=True):
        found = pool.find(ROOTS[0], content)
        assert found is not None
        assert found[0] == page
