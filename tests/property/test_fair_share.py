"""Shares of clients that wait together, by simulation of a queue served in order of turns."""

import heapq

from hypothesis import given
from hypothesis import strategies as st

from lightvl.engine.fair_share import FairShare

COSTS = st.lists(st.integers(1, 100), min_size=1, max_size=60)


@given(COSTS)
def test_one_client_is_served_first_come_first_served(costs: list[int]) -> None:
    share = FairShare()
    turns = []
    for i, cost in enumerate(costs):
        turns.append(share.line_up(b"a", cost))
        if i % 3 == 0:
            share.admit(turns[i // 2])
            share.charge(b"a", cost)
    assert turns == sorted(turns)


@given(st.dictionaries(st.binary(max_size=2), COSTS, min_size=2, max_size=5))
def test_clients_that_wait_get_equal_shares(queues: dict[bytes, list[int]]) -> None:
    share = FairShare()
    waiting = [
        (share.line_up(client, cost), i, client, cost)
        for client, costs in queues.items()
        for i, cost in enumerate(costs)
    ]
    heapq.heapify(waiting)
    left = {client: len(costs) for client, costs in queues.items()}
    served = dict.fromkeys(queues, 0)
    while all(left.values()):  # while every client waits
        turn, _, client, cost = heapq.heappop(waiting)
        share.admit(turn)
        served[client] += cost
        left[client] -= 1
        assert max(served.values()) - min(served.values()) <= 2 * 100


@given(st.integers(1, 10_000))
def test_who_comes_late_has_saved_nothing_up(waited: int) -> None:
    share = FairShare()
    for _ in range(waited % 50):
        share.admit(share.line_up(b"busy", 10))
    late = share.line_up(b"late", 10)
    assert late <= share.line_up(b"busy", 10)
    assert share.line_up(b"late", 10) == late + 10
    assert share.line_up(b"busy", 1) - late <= 20


def test_generated_tokens_count() -> None:
    share = FairShare()
    share.admit(share.line_up(b"a", 10))
    share.line_up(b"b", 10)
    share.charge(b"a", 1000)
    assert share.line_up(b"b", 10) < share.line_up(b"a", 10)
