"""The queue's counts against a list of what waits, for any order of events."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lightvl.api.admission import Admission, Limits, Ticket
from lightvl.errors import RequestError

CLIENTS = (b"a", b"b", b"c")
LIMITS = Limits(max_requests=6, max_tokens=60, max_wait_s=20.0, num_clients=3)


class Waiting:
    """A ticket and what it said."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.tokens = 0


class AdmissionMachine(RuleBasedStateMachine):
    """Requests arrive, say their lengths, start and leave, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.admission = Admission(LIMITS, lambda: self.now_s)
        self.waiting: list[Waiting] = []

    def of(self, client: bytes) -> list[Waiting]:
        return [waiting for waiting in self.waiting if waiting.ticket.client == client]

    @rule(seconds=st.sampled_from([0.0, 0.01, 1.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(client=st.sampled_from(CLIENTS))
    def arrive(self, client: bytes) -> None:
        try:
            ticket = self.admission.arrive(client)
        except RequestError as error:
            self.check_refusal(error)
            has_share = len(self.of(client)) < LIMITS.max_requests / LIMITS.num_clients
            is_full = len(self.waiting) >= LIMITS.max_requests and not has_share
            assert is_full or self.of(client)  # who has nothing waiting needs not wait
            return
        assert len(self.of(client)) < LIMITS.max_requests
        self.waiting.append(Waiting(ticket))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), tokens=st.integers(1, 50))
    def say(self, data: st.DataObject, tokens: int) -> None:
        waiting = data.draw(st.sampled_from(self.waiting))
        try:
            waiting.ticket.add_tokens(tokens)
        except RequestError as error:
            self.check_refusal(error)
            assert sum(other.tokens for other in self.waiting) > 0
            return
        waiting.tokens += tokens

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), started=st.booleans())
    def end(self, data: st.DataObject, started: bool) -> None:
        waiting = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        if started and waiting.tokens:
            waiting.ticket.started()
        waiting.ticket.leave()
        waiting.ticket.leave()

    def check_refusal(self, error: RequestError) -> None:
        assert error.status == 429
        assert error.retry_after_s is not None
        assert 1 <= error.retry_after_s <= 60

    @invariant()
    def counts_agree(self) -> None:
        assert self.admission.waiting_requests == len(self.waiting)
        assert self.admission.waiting_tokens == sum(waiting.tokens for waiting in self.waiting)
        assert self.admission.expected_wait_s() >= 0
        for client in CLIENTS:
            wait_s = self.admission.expected_wait_s(client)
            assert wait_s <= self.admission.expected_wait_s() + 1e-9
            if not any(waiting.tokens for waiting in self.of(client)):
                assert wait_s == pytest.approx(0)


TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
