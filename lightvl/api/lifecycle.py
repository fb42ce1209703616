"""Signals, the drain and the loss of the engine: what ends the server, and how."""

import asyncio
import logging
import os
import signal
import subprocess

from lightvl.api.front import Front
from lightvl.errors import EngineLostError
from lightvl.utils.process import end_process, how_ended

log = logging.getLogger(__name__)


class Lifecycle:
    """Decides when and how the server ends; made on its event loop.

    Args:
        drain_s: Seconds that requests under way get after the first signal.

    Attributes:
        exit_code: Of the process, once `ended` is set.
        ended: Set when nothing is to be served any more.
    """

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._ending: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.exit_code = 0
        self.ended = asyncio.Event()
        self._front: Front | None = None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.on_signal)

    def watch(self, front: Front, process: subprocess.Popen[bytes]) -> None:
        """The server serves now: a signal drains it, a lost engine ends it.

        Args:
            front: Refuses requests and knows which are under way.
            process: The engine's.
        """
        self._front = front
        self._process = process
        self._loss = asyncio.create_task(self._on_loss(front, process))

    def on_signal(self) -> None:
        """Drains at the first signal, ends at once at the second."""
        if self._ending is None:
            self.drain()
            return
        log.error("a second signal: ending at once")
        if self._process is not None:
            self._process.kill()
        os._exit(1)

    def drain(self) -> None:
        """Refuses new requests, lets running ones end, then ends the server."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        front = self._front
        if front is not None:
            front.draining = True
            log.info("draining: %d requests get up to %g s", front.num_open, self._drain_s)
            try:
                await asyncio.wait_for(front.idle.wait(), self._drain_s)
            except TimeoutError:
                log.warning("%d requests are cut off", front.num_open)
                front.end_all(EngineLostError())
        self.ended.set()

    async def _on_loss(self, front: Front, process: subprocess.Popen[bytes]) -> None:
        await front.client.lost.wait()
        front.draining = True
        front.end_all(EngineLostError("the engine was lost"))
        code = await asyncio.to_thread(end_process, process)
        log.error("the engine was lost (%s): the server ends", how_ended(code))
        self.exit_code = 1
        self.ended.set()
