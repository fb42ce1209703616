"""The front's side of the media workers: one line of jobs for all of them."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable

from lightvl.multimodal.jobs import CheckConstraint, Job, Refused, Reply, Start
from lightvl.utils.channel import AsyncChannel, ChannelClosed, channel_pair
from lightvl.utils.shm import Arena

log = logging.getLogger(__name__)


CHECK_S = 3.0
"""Wall time in which a constraint must be tried."""

TOO_COMPLEX = "too large or too complex"


class WorkerPool:
    """Gives jobs to worker processes, first come, first served.

    Workers are started when a job finds none idle, up to `num_workers`. One that dies or takes
    too long is killed and forgotten; only its job fails.

    Args:
        arena: Where jobs' bytes and pixels lie.
        start: The first message to each worker.
        num_workers: Most processes at once.
        job_timeout_s: Wall time of one job; for the first of a worker, its start included.

    Attributes:
        num_lost: Workers that died or were killed for taking too long.
    """

    def __init__(self, arena: Arena, start: Start, num_workers: int, job_timeout_s: float) -> None:
        self._arena = arena
        self._start = start
        self.job_timeout_s = job_timeout_s
        self.num_lost = 0
        self._places = asyncio.Semaphore(num_workers)
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._tasks: set[asyncio.Task[Reply]] = set()
        self._closing = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that live."""
        return [worker.process.pid for worker in self._all]

    async def warm_up(self) -> None:
        """Starts one worker, so that the first job need not wait for it."""
        self._idle.append(await self._spawn())

    async def run(self, job: Job, done: Callable[[], None]) -> Reply:
        """Does a job, once it is its turn.

        Args:
            job: What to do.
            done: Called exactly once, when the job doesn't or no longer touch the arena; that is
                later than the end of this call if it is cancelled.
        """
        try:
            await self._places.acquire()
        except BaseException:
            done()
            raise
        task = asyncio.create_task(self._serve(job))
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._served(task, done))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Kills all workers; jobs under way fail."""
        self._closing = True
        await asyncio.gather(*(self._end(worker) for worker in list(self._all)))
        await asyncio.gather(*self._tasks)

    async def _serve(self, job: Job) -> Reply:
        try:
            worker = await self._worker()
            reply = await self._ask(worker, job)
        except TimeoutError:  # is an OSError too
            if isinstance(job, CheckConstraint):
                return Refused(TOO_COMPLEX)
            return Refused(f"takes longer than {self.job_timeout_s:g} s to decode")
        except OSError:
            if isinstance(job, CheckConstraint):
                return Refused(TOO_COMPLEX)
            return Refused("can't be decoded: its decoder ended unexpectedly")
        self._idle.append(worker)
        return reply

    def _served(self, task: asyncio.Task[Reply], done: Callable[[], None]) -> None:
        self._tasks.discard(task)
        self._places.release()
        done()

    async def _worker(self) -> "_Worker":
        while self._idle:
            worker = self._idle.pop()
            if worker.process.poll() is None:
                return worker
            await self._end(worker)
        return await self._spawn()

    async def _ask(self, worker: "_Worker", job: Job) -> Reply:
        try:
            is_check = isinstance(job, CheckConstraint)
            limit_s = min(self.job_timeout_s, CHECK_S) if is_check else self.job_timeout_s
            async with asyncio.timeout(limit_s):
                worker.channel.send(job)
                return await worker.channel.recv()
        except BaseException:
            await self._end(worker)
            raise

    async def _spawn(self) -> "_Worker":
        if self._closing:
            raise ChannelClosed
        ours, theirs = channel_pair()
        with theirs:
            fds = (theirs.fileno(), self._arena.fd)
            command = [sys.executable, "-m", "lightvl.multimodal.worker"]
            options = ["--channel-fd", str(fds[0]), "--arena-fd", str(fds[1])]
            process = subprocess.Popen(
                [*command, *options], pass_fds=fds, stdin=subprocess.DEVNULL, process_group=0
            )
        channel: AsyncChannel[Reply] = await AsyncChannel.open(ours, Reply)
        worker = _Worker(process, channel)
        self._all.add(worker)
        channel.send(self._start)
        return worker

    async def _end(self, worker: "_Worker") -> None:
        if worker not in self._all:
            return
        self._all.remove(worker)
        worker.process.kill()
        code = await asyncio.to_thread(worker.process.wait)
        await worker.channel.close()
        if not self._closing:
            self.num_lost += 1
            log.warning("a media worker ended (%s) and is replaced", code)


class _Worker:
    """A process and the channel to it."""

    def __init__(self, process: subprocess.Popen[bytes], channel: AsyncChannel[Reply]) -> None:
        self.process = process
        self.channel = channel
