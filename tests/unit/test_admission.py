"""The queue's limits and the rate at which it drains."""

import pytest

from lightvl.api.admission import Admission, Limits, Ticket
from lightvl.errors import RequestError


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make(clock: Clock, **limits: float) -> Admission:
    values = {"max_requests": 3, "max_tokens": 100, "max_wait_s": None, **limits}
    return Admission(Limits(**values), clock)  # type: ignore[arg-type]


def test_requests_beyond_the_limit_are_refused_until_one_starts() -> None:
    admission = make(Clock())
    tickets = [admission.arrive() for _ in range(3)]
    with pytest.raises(RequestError) as refused:
        admission.arrive()
    assert refused.value.status == 429
    assert refused.value.retry_after_s == 1
    assert "3 requests are waiting" in refused.value.message
    tickets[0].started()
    assert admission.waiting_requests == 2
    admission.arrive()


def test_a_ticket_is_given_back_once() -> None:
    admission = make(Clock())
    ticket = admission.arrive()
    ticket.add_tokens(10)
    ticket.started()
    ticket.started()
    ticket.leave()
    assert admission.waiting_requests == 0
    assert admission.waiting_tokens == 0


def test_tokens_beyond_the_limit_are_refused_but_an_empty_queue_takes_any() -> None:
    admission = make(Clock())
    first, second = admission.arrive(), admission.arrive()
    first.add_tokens(1000)
    with pytest.raises(RequestError) as refused:
        second.add_tokens(1)
    assert refused.value.status == 429
    assert "1000 prompt tokens" in refused.value.message
    second.leave()
    assert admission.waiting_tokens == 1000
    first.leave()
    assert admission.waiting_tokens == 0


def drain(admission: Admission, clock: Clock, num_tokens: int, seconds: float, times: int) -> None:
    waiting = [admission.arrive() for _ in range(times)]
    for ticket in waiting:
        ticket.add_tokens(num_tokens)
    for ticket in waiting:
        clock.now_s += seconds
        ticket.started()


def test_the_expected_wait_follows_the_measured_rate() -> None:
    clock = Clock()
    admission = make(clock, max_requests=100, max_tokens=10_000, max_wait_s=5.0)
    assert admission.expected_wait_s() == 0
    drain(admission, clock, num_tokens=20, seconds=2.0, times=10)
    first = admission.arrive()
    first.add_tokens(40)
    assert admission.expected_wait_s() == pytest.approx(4.0)
    admission.arrive().add_tokens(20)
    with pytest.raises(RequestError) as refused:
        admission.arrive().add_tokens(10)
    assert refused.value.retry_after_s == 6
    assert "expected wait is 6.0 s" in refused.value.message


def test_idle_time_does_not_slow_the_measured_rate() -> None:
    clock = Clock()
    admission = make(clock, max_requests=100, max_tokens=10_000)
    drain(admission, clock, num_tokens=20, seconds=2.0, times=4)
    clock.now_s += 3600
    drain(admission, clock, num_tokens=20, seconds=2.0, times=4)
    admission.arrive().add_tokens(100)
    assert admission.expected_wait_s() == pytest.approx(10.0)


def test_retry_after_has_an_upper_bound() -> None:
    clock = Clock()
    admission = make(clock, max_requests=100, max_tokens=1000)
    drain(admission, clock, num_tokens=1, seconds=10.0, times=5)
    admission.arrive().add_tokens(900)
    with pytest.raises(RequestError) as refused:
        admission.arrive().add_tokens(200)
    assert refused.value.retry_after_s == 60


def test_a_full_queue_leaves_each_client_its_share() -> None:
    admission = make(Clock(), max_requests=4, num_clients=2)
    for _ in range(4):
        admission.arrive(b"greedy").add_tokens(25)
    with pytest.raises(RequestError):
        admission.arrive(b"greedy")
    others = [admission.arrive(b"other") for _ in range(2)]
    with pytest.raises(RequestError):
        admission.arrive(b"other")
    others[0].add_tokens(50)
    with pytest.raises(RequestError):
        others[1].add_tokens(1)
    others[0].leave()
    others[1].add_tokens(1)


def test_one_client_alone_has_the_queue_and_no_more() -> None:
    admission = make(Clock(), max_requests=2)
    for _ in range(2):
        admission.arrive(b"a")
    with pytest.raises(RequestError):
        admission.arrive(b"a")


def test_time_in_which_nothing_can_start_does_not_slow_the_measured_rate() -> None:
    clock = Clock()
    admission = make(clock, max_requests=100, max_tokens=10_000)
    drain(admission, clock, num_tokens=20, seconds=2.0, times=4)
    slow = admission.arrive()  # its picture comes slowly
    clock.now_s += 3600
    drain(admission, clock, num_tokens=20, seconds=2.0, times=4)
    slow.leave()
    admission.arrive().add_tokens(100)
    assert admission.expected_wait_s() == pytest.approx(10.0)


def test_a_stalled_engine_lets_the_rate_fall() -> None:
    clock = Clock()
    admission = make(clock, max_requests=100, max_tokens=10_000)
    drain(admission, clock, num_tokens=20, seconds=2.0, times=11)
    admission.arrive().add_tokens(100)
    clock.now_s += 2.0
    assert admission.expected_wait_s() == pytest.approx(10.0)  # a start is due, not overdue
    clock.now_s += 20.0
    assert admission.expected_wait_s() == pytest.approx(20.0)


def test_time_that_ends_with_a_leave_counts() -> None:
    clock = Clock()
    admission = make(clock, max_requests=100, max_tokens=10_000)
    drain(admission, clock, num_tokens=20, seconds=2.0, times=10)
    leaving = admission.arrive()
    leaving.add_tokens(20)
    clock.now_s += 18.0
    leaving.leave()
    drain(admission, clock, num_tokens=20, seconds=2.0, times=1)
    admission.arrive().add_tokens(100)
    assert admission.expected_wait_s() == pytest.approx(100 / (200 / 38))


def test_a_burst_is_refused_before_its_prompts_are_read() -> None:
    clock = Clock()
    admission = make(clock, max_requests=1000, max_tokens=10_000, max_wait_s=5.0)
    drain(admission, clock, num_tokens=20, seconds=2.0, times=10)
    arrived: list[Ticket] = []
    with pytest.raises(RequestError, match=r"expected wait is 6\.0 s"):
        arrived.extend(admission.arrive() for _ in range(100))
    assert admission.waiting_requests == 3
    assert admission.waiting_tokens == 0


def test_only_clients_that_ask_much_are_told_to_wait() -> None:
    clock = Clock()
    admission = make(clock, max_requests=100, max_tokens=10_000, max_wait_s=50.0, num_clients=3)
    drain(admission, clock, num_tokens=20, seconds=2.0, times=10)
    for _ in range(26):
        admission.arrive(b"greedy").add_tokens(20)
    with pytest.raises(RequestError, match=r"52\.0 s"):
        admission.arrive(b"greedy")
    others = [admission.arrive(b"modest") for _ in range(13)]
    for ticket in others:
        ticket.add_tokens(20)
    assert admission.expected_wait_s(b"modest") == pytest.approx(52.0)  # half the rate is its
    assert admission.expected_wait_s() == pytest.approx(78.0)
    with pytest.raises(RequestError):
        admission.arrive(b"modest")
    admission.arrive(b"third").add_tokens(20)


def test_a_request_of_several_prompts_counts_all_of_them() -> None:
    clock = Clock()
    admission = make(clock, max_tokens=100)
    ticket = admission.arrive()
    for _ in range(5):
        ticket.add_tokens(20)
    assert (admission.waiting_requests, admission.waiting_tokens) == (1, 100)
    with pytest.raises(RequestError):
        ticket.add_tokens(1)
    ticket.started()
    assert (admission.waiting_requests, admission.waiting_tokens) == (0, 0)
    ticket.add_tokens(30)  # prepared only after the others had started
    assert (admission.waiting_requests, admission.waiting_tokens) == (1, 30)
    ticket.leave()
    assert (admission.waiting_requests, admission.waiting_tokens) == (0, 0)
