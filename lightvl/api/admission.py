"""How much may wait: beyond it a request is answered 429 with the time to come back.

No client can fill the queue against the others: each may have its share of it waiting, the bounds
divided by the number of keys, also when the queue is full.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from lightvl.errors import RequestError

_STARTS_REMEMBERED = 64
_LONGEST_RETRY_S = 60


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of the queue.

    Attributes:
        max_requests: Requests that have arrived and whose prefill hasn't begun.
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

    The clock runs only while something waits: an idle server's rate doesn't fall.
    """

    def __init__(self) -> None:
        self._starts: deque[tuple[float, int]] = deque(maxlen=_STARTS_REMEMBERED)
        self._busy_s = 0.0

    def record(self, busy_s: float, num_tokens: int) -> None:
        """Counts a start of `num_tokens` after `busy_s` more seconds with a queue."""
        self._busy_s += busy_s
        self._starts.append((self._busy_s, num_tokens))

    @property
    def tokens_per_s(self) -> float | None:
        """The rate, or None before two starts have been seen some time apart."""
        if len(self._starts) < 2:
            return None
        elapsed_s = self._starts[-1][0] - self._starts[0][0]
        tokens = sum(n for _, n in self._starts) - self._starts[0][1]
        return tokens / elapsed_s if elapsed_s > 0 else None


class Ticket:
    """One request's place in the queue; `started` or `leave` gives it back."""

    __slots__ = ("_admission", "_waiting", "client", "num_tokens")

    def __init__(self, admission: "Admission", client: bytes) -> None:
        self._admission = admission
        self.client = client
        self._waiting = True
        self.num_tokens = 0

    def add_tokens(self, num_tokens: int) -> None:
        """Says how long the prompt is, once that is known.

        Raises:
            RequestError: 429; the ticket must still be given back.
        """
        self._admission.check_tokens(self.client, num_tokens)
        self.num_tokens = num_tokens
        self._admission.count(self.client, 0, num_tokens)

    def started(self) -> None:
        """The request's prefill begins."""
        if self._waiting:
            self._admission.record_start(self.num_tokens)
        self.leave()

    def leave(self) -> None:
        """The request waits no longer, whatever became of it."""
        if self._waiting:
            self._waiting = False
            self._admission.count(self.client, -1, -self.num_tokens)


class Admission:
    """Counts what waits and refuses what is too much."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._rate = DrainRate()
        self._last_s = clock()
        self.waiting_requests = 0
        self.waiting_tokens = 0
        self._requests_of: Counter[bytes] = Counter()
        self._tokens_of: Counter[bytes] = Counter()

    def arrive(self, client: bytes = b"") -> Ticket:
        """Admits a request to the queue before anything of it is read.

        Raises:
            RequestError: 429 with `retry_after_s`.
        """
        has_share = self._requests_of[client] < self._limits.share[0]
        if self.waiting_requests >= self._limits.max_requests and not has_share:
            raise self._busy(f"{self.waiting_requests} requests are waiting already")
        if not has_share:
            self._check_wait()
        if self.waiting_requests == 0:
            self._last_s = self._clock()
        self.count(client, 1, 0)
        return Ticket(self, client)

    def count(self, client: bytes, num_requests: int, num_tokens: int) -> None:
        """Adds to what waits, or takes away."""
        self.waiting_requests += num_requests
        self.waiting_tokens += num_tokens
        self._requests_of[client] += num_requests
        self._tokens_of[client] += num_tokens
        if self._requests_of[client] == 0:
            del self._requests_of[client], self._tokens_of[client]

    def check_tokens(self, client: bytes, num_tokens: int) -> None:
        """Refuses a prompt that the queue has no room for; an empty queue takes any.

        Raises:
            RequestError: 429 with `retry_after_s`.
        """
        has_share = self._tokens_of[client] + num_tokens <= self._limits.share[1]
        if self.waiting_tokens == 0 or has_share:
            return
        if self.waiting_tokens + num_tokens > self._limits.max_tokens:
            raise self._busy(f"{self.waiting_tokens} prompt tokens are waiting already")
        self._check_wait()

    def _check_wait(self) -> None:
        wait_s = self.expected_wait_s()
        if self._limits.max_wait_s is not None and wait_s > self._limits.max_wait_s:
            raise self._busy(f"the expected wait is {wait_s:.1f} s")

    def expected_wait_s(self) -> float:
        """Seconds until what waits now has started, by the measured rate; 0 when unknown."""
        rate = self._rate.tokens_per_s
        return self.waiting_tokens / rate if rate else 0.0

    def record_start(self, num_tokens: int) -> None:
        """Measures the rate at which the queue drains."""
        now = self._clock()
        self._rate.record(now - self._last_s, num_tokens)
        self._last_s = now

    def _busy(self, why: str) -> RequestError:
        retry_s = min(max(1, math.ceil(self.expected_wait_s())), _LONGEST_RETRY_S)
        return RequestError(
            f"the server is busy: {why}", 429, code="queue_full", retry_after_s=retry_s
        )
