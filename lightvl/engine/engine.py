"""Rank 0's loop: messages in, steps executed, messages out; torch-free."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Protocol

from lightvl.config import EngineConfig
from lightvl.engine.memory import MemoryPlan, embedding_page_bytes
from lightvl.engine.plan import StepPlan, StepResult
from lightvl.engine.scheduler import Scheduler
from lightvl.messages import (
    Abort,
    AddRequest,
    FlushCaches,
    GetStats,
    Init,
    Pixels,
    Stats,
    ToEngine,
)
from lightvl.utils.channel import Channel


class Executor(Protocol):
    """Runs planned steps; the runner, or a stand-in."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step and returns what it drew."""


class Engine:
    """One scheduler and one executor, in step.

    Args:
        config: The engine's configuration.
        memory: How many pages the executor has.
        executor: Runs the steps.
        send: Takes messages for the front, in order.
    """

    def __init__(
        self,
        config: EngineConfig,
        memory: MemoryPlan,
        executor: Executor,
        send: Callable[..., None],
    ) -> None:
        self._scheduler = Scheduler(config, memory)
        self._executor = executor
        self._send = send
        self._tile_bytes = embedding_page_bytes(config.model, config.data_type)
        tier = "host" if config.device == "cpu" else "gpu"
        self._image_bytes_name = f'image_cache_bytes{{tier="{tier}"}}'

    def handle(self, message: ToEngine) -> None:
        """Takes one message of the front; answers leave with the next step."""
        match message:
            case AddRequest():
                self._scheduler.add(message)
            case Abort():
                self._scheduler.abort(message.request_id)
            case Pixels():
                self._scheduler.supply(message)
            case FlushCaches():
                self._scheduler.flush()
            case GetStats():
                self._scheduler.outbox.append(Stats(self.stats()))
            case Init():
                raise ValueError("Init comes once, before the engine is made")

    def step(self) -> bool:
        """Plans and executes one step; returns False if there was nothing to compute."""
        step = self._scheduler.plan()
        self._flush()  # the front decodes pictures meanwhile
        if step is None:
            return False
        self._scheduler.apply(step, self._executor.execute(step.plan))
        self._flush()
        return True

    @property
    def awaits_grammar(self) -> bool:
        """Whether a grammar's answer is to come."""
        return self._scheduler.grammars.num_pending > 0

    def sleep(self, fd: int) -> None:
        """Sleeps until `fd` can be read or a grammar has answered, or should have."""
        self._scheduler.grammars.sleep(fd)

    def stats(self) -> dict[str, float]:
        """Returns gauges, and counters since start (`_total`), by metric name."""
        scheduler = self._scheduler
        pool, pictures = scheduler.pool, scheduler.pictures
        num_used = pool.num_pages - pool.num_available
        return {
            "num_requests_running": len(scheduler.running),
            "num_requests_waiting": len(scheduler.waiting),
            "kv_cache_usage_perc": num_used / pool.num_pages,
            "kv_pages": pool.num_pages,
            "kv_pages_used": num_used,
            "kv_pages_cached": pool.num_cached,
            "image_cache_images": len(pictures),
            "image_cache_images_in_use": pictures.num_held,
            self._image_bytes_name: pictures.num_used_pages * self._tile_bytes,
            "image_cache_evictions_total": pictures.num_evictions,
            **{f"{name}_total": value for name, value in asdict(scheduler.counters).items()},
        }

    def _flush(self) -> None:
        outbox = self._scheduler.outbox
        if outbox:
            self._send(*outbox)
            outbox.clear()


def serve(engine: Engine, channel: Channel[ToEngine]) -> None:
    """Runs an engine until its channel closes; sleeps in it while there is nothing to compute.

    Raises:
        ChannelClosed: The front is gone.
    """
    busy = False
    while True:
        if not busy and engine.awaits_grammar:
            engine.sleep(channel.fileno())
        elif not busy:
            engine.handle(channel.recv())
        for message in channel.recv_ready():
            engine.handle(message)
        busy = engine.step()
