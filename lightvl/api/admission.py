"""How much may wait: beyond it a request is answered 429 with the time to come back.

A request waits from its arrival to its first token, for the engine takes in many before it
computes them. So the rate at which the queue drains is that of first tokens, each counted with the
length of its prompt, and the expected wait is the time to first token that a client would see.

No client can fill the queue against the others: each may have its share of it waiting, the bounds
divided by the number of keys, also when the queue is full.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lightvl.errors import RequestError

_STARTS_REMEMBERED = 64
_LONGEST_RETRY_S = 60


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of the queue.

    Attributes:
        max_requests: Requests that have arrived and whose first token hasn't come.
        max_tokens: Prompt tokens of those.
        max_wait_s: Longest expected wait, or None.
        num_clients: Keys among which the first two are shared.
    """

    max_requests: int
    max_tokens: int
    max_wait_s: float | None = None
    num_clients: int = 1

    @property
    def share(self) -> tuple[float, float]:
        """Requests and tokens that one client may have waiting whatever others have."""
        if self.num_clients == 1:
            return 0, 0
        return self.max_requests / self.num_clients, self.max_tokens / self.num_clients


class DrainRate:
    """Prompt tokens a second that leave the queue, measured over the last starts.

    The clock runs only while something could start: an idle server's rate doesn't fall, and
    neither does it while all who have arrived still send their bodies or wait for their pictures.
    """

    def __init__(self) -> None:
        self._starts: deque[tuple[float, int]] = deque(maxlen=_STARTS_REMEMBERED)
        self._busy_s = 0.0

    def wait(self, busy_s: float) -> None:
        """Counts `busy_s` more seconds with a queue."""
        self._busy_s += busy_s

    def record(self, num_tokens: int) -> None:
        """Counts a start of `num_tokens`."""
        self._starts.append((self._busy_s, num_tokens))

    @property
    def tokens_per_start(self) -> float:
        """What a request that says nothing of itself yet may bring."""
        return sum(n for _, n in self._starts) / max(1, len(self._starts))

    def tokens_per_s(self, stalled_s: float = 0.0) -> float | None:
        """Returns the rate, or None before two starts have been seen some time apart.

        Args:
            stalled_s: Seconds with a queue since the clock was last moved on.
        """
        if len(self._starts) < 2:
            return None
        begin_s, first_tokens = self._starts[0]
        last_s, _ = self._starts[-1]
        if last_s <= begin_s:
            return None
        usual_s = (last_s - begin_s) / (len(self._starts) - 1)
        overdue_s = max(0.0, self._busy_s + stalled_s - last_s - usual_s)
        tokens = sum(n for _, n in self._starts) - first_tokens
        return tokens / (last_s - begin_s + overdue_s)


@dataclass
class Queue:
    """What waits, of one client or of all.

    Attributes:
        requests: Requests that have arrived and whose first token hasn't come.
        unread: Of these, how many haven't said how long their prompts are.
        tokens: Prompt tokens of the others.
    """

    requests: int = 0
    unread: int = 0
    tokens: int = 0

    def add(self, requests: int, unread: int, tokens: int) -> None:
        """Adds, or takes away."""
        self.requests += requests
        self.unread += unread
        self.tokens += tokens


class Ticket:
    """One request's place in the queue; `started` or `leave` gives it back."""

    __slots__ = ("_admission", "_waiting", "client", "num_tokens")

    def __init__(self, admission: "Admission", client: bytes) -> None:
        self._admission = admission
        self.client = client
        self._waiting = True
        self.num_tokens = 0
        admission.count(client, 1, 1, 0)

    def add_tokens(self, num_tokens: int) -> None:
        """Says how long the prompt, or one more of several, is, once that is known.

        Raises:
            RequestError: 429; the ticket must still be given back.
        """
        self._admission.check_tokens(self.client, num_tokens)
        is_unread = self._waiting and self.num_tokens == 0
        self._admission.count(self.client, not self._waiting, -is_unread, num_tokens)
        self.num_tokens += num_tokens
        self._waiting = True

    def started(self) -> None:
        """The request's first token is there."""
        if self._waiting:
            self._admission.record_start(self.num_tokens)
        self.leave()

    def leave(self) -> None:
        """The request waits no longer, whatever became of it."""
        if self._waiting:
            self._waiting = False
            self._admission.count(self.client, -1, -(self.num_tokens == 0), -self.num_tokens)
            self.num_tokens = 0


class Admission:
    """Counts what waits and refuses what is too much."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._rate = DrainRate()
        self._last_s = clock()
        self._all = Queue()
        self._of: dict[bytes, Queue] = {}

    @property
    def waiting_requests(self) -> int:
        """Requests that have arrived and whose first token hasn't come."""
        return self._all.requests

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of those, as far as they are known."""
        return self._all.tokens

    def arrive(self, client: bytes = b"") -> Ticket:
        """Admits a request to the queue before anything of it is read.

        Those whose prompts aren't known yet count with the usual length, so that most of a burst
        is refused here and not after its bodies were read.

        Raises:
            RequestError: 429 with `retry_after_s`.
        """
        has_share = self._queue_of(client).requests < self._limits.share[0]
        if self.waiting_requests >= self._limits.max_requests and not has_share:
            raise self._busy(f"{self.waiting_requests} requests are waiting already")
        self._check_wait(client, self._rate.tokens_per_start)
        return Ticket(self, client)

    def count(self, client: bytes, requests: int, unread: int, tokens: int) -> None:
        """Adds to what waits, or takes away."""
        self._move_clock()
        self._all.add(requests, unread, tokens)
        queue = self._of.setdefault(client, Queue())
        queue.add(requests, unread, tokens)
        if queue.requests == 0:
            del self._of[client]

    def check_tokens(self, client: bytes, num_tokens: int) -> None:
        """Refuses a prompt that the queue has no room for; an empty queue takes any.

        Raises:
            RequestError: 429 with `retry_after_s`.
        """
        if self.waiting_tokens == 0:
            return
        has_share = self._queue_of(client).tokens + num_tokens <= self._limits.share[1]
        if self.waiting_tokens + num_tokens > self._limits.max_tokens and not has_share:
            raise self._busy(f"{self.waiting_tokens} prompt tokens are waiting already")
        self._check_wait(client)

    def expected_wait_s(self, client: bytes | None = None, tokens_of_unread: float = 0.0) -> float:
        """Seconds until what waits now has started, by the measured rate; 0 when unknown.

        Args:
            client: Until what waits of this one has: clients take turns, so that one of n that
                wait gets an nth of the rate, or all that the others leave.
            tokens_of_unread: Taken as the length of prompts that aren't known yet.
        """
        rate = self._rate.tokens_per_s(self._stalled_s())
        if rate is None:
            return 0.0
        tokens = self._all.tokens + tokens_of_unread * self._all.unread
        if client is not None:
            own = self._queue_of(client)
            num_clients = len(self._of.keys() | {client})
            own_tokens = own.tokens + tokens_of_unread * own.unread
            tokens = min(tokens, num_clients * own_tokens)
        return tokens / rate

    def record_start(self, num_tokens: int) -> None:
        """Measures the rate at which the queue drains."""
        self._move_clock()
        self._rate.record(num_tokens)

    def _queue_of(self, client: bytes) -> Queue:
        return self._of.get(client) or Queue()

    def _stalled_s(self) -> float:
        return self._clock() - self._last_s if self._all.tokens else 0.0

    def _move_clock(self) -> None:
        self._rate.wait(self._stalled_s())
        self._last_s = self._clock()

    def _check_wait(self, client: bytes, tokens_of_unread: float = 0.0) -> None:
        if self._limits.max_wait_s is None:
            return
        wait_s = self.expected_wait_s(client, tokens_of_unread)
        if wait_s > self._limits.max_wait_s:
            raise self._busy(f"the expected wait is {wait_s:.1f} s")

    def _busy(self, why: str) -> RequestError:
        retry_s = min(max(1, math.ceil(self.expected_wait_s())), _LONGEST_RETRY_S)
        return RequestError(
            f"the server is busy: {why}", 429, code="queue_full", retry_after_s=retry_s
        )
