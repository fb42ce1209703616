"""What every route works with."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from lightvl.api.admission import Admission
from lightvl.api.client import EngineClient
from lightvl.api.metrics import Metrics
from lightvl.api.tracing import Tracing
from lightvl.config import ModelConfig
from lightvl.errors import RequestError
from lightvl.flags import ServerConfig
from lightvl.multimodal.pool import MediaPool
from lightvl.tokenizer.tokenizer import Tokenizer


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(slots=True, kw_only=True)
class Front:
    """The running front: its parts, and whether it still takes requests.

    Attributes:
        model_name: What clients call the model.
        max_total_token_num: KV tokens of the engine.
        api_keys: Keys that open every route but the admin ones; none of any kind: all is open.
        admin_key: Opens every route, or None.
        draining: New requests are answered 503.
        idle: Set while no request to a generating route is under way.
        started_s: Unix time.
        tracing: Takes the times of ended requests, or None.
        device: What the model runs on.
        choices: What the engine chose at start (device, kernels, memory), a line each.
        warned_keys: Unknown body keys that were logged already.
    """

    config: ServerConfig
    model: ModelConfig
    model_name: str
    tokenizer: Tokenizer
    client: EngineClient
    media: MediaPool
    admission: Admission
    metrics: Metrics
    max_total_token_num: int
    api_keys: tuple[bytes, ...]
    admin_key: bytes | None
    started_s: int
    device: str = ""
    choices: list[str] = field(default_factory=list)
    tracing: Tracing | None = None
    draining: bool = False
    idle: asyncio.Event = field(default_factory=_set_event)
    warned_keys: set[str] = field(default_factory=set)
    _open: set[Callable[[RequestError], None]] = field(default_factory=set)

    @property
    def num_open(self) -> int:
        """Requests to generating routes that are under way."""
        return len(self._open)

    def opened(self, end: Callable[[RequestError], None]) -> None:
        """A request to a generating route begins; `end` ends it with an error."""
        self._open.add(end)
        self.idle.clear()

    def closed(self, end: Callable[[RequestError], None]) -> None:
        """It has been answered or given up."""
        self._open.remove(end)
        if not self._open:
            self.idle.set()

    def end_all(self, error: RequestError) -> None:
        """Ends every request under way, also those that have not come to the engine."""
        for end in list(self._open):
            end(error)

    def count_rejected(self, error: RequestError) -> None:
        """Counts a request that is answered with an error."""
        self.metrics.rejected.labels(error.code or str(error.status)).inc()

    def salt_of(self, client: bytes) -> bytes:
        """Returns a client's cache namespace."""
        return client if self.config.cache_namespace == "key" else b""
