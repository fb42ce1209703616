"""The engine's side of the grammar process: who waits for a mask, and since when; torch-free."""

import logging
import select
import subprocess
import sys
from time import monotonic

from lightvl.config import EngineConfig
from lightvl.engine.grammar_messages import (
    NUM_THREADS,
    Advance,
    Close,
    FromGrammar,
    Load,
    Loaded,
    Mask,
    Open,
    Refusal,
)
from lightvl.types import SamplingParams
from lightvl.utils.channel import Channel, ChannelClosed, channel_pair

logger = logging.getLogger(__name__)

YOUNG_S = 0.003
"""How long a step waits for a mask that was just asked for; a slower one misses steps."""

LIMIT_S = 2.0
"""Time of one grammar's compilation or one mask, after which its sequence is refused."""

_ALWAYS = 1 << 62


class Grammars:
    """Constrained sequences, by request id. Nothing is started before the first one opens.

    Args:
        config: The engine's configuration.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._channel: Channel[FromGrammar] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._loaded = False
        self._open: set[int] = set()
        self._asked_s: dict[int, float] = {}
        self._young: set[int] = set()
        self._young_until_s = 0.0
        self._late: set[int] = set()
        self._refusals: list[Refusal] = []

    @property
    def num_pending(self) -> int:
        """Sequences that wait for an answer."""
        return len(self._asked_s) + len(self._refusals)

    def open(self, request_id: int, sampling: SamplingParams) -> None:
        """A constrained sequence begins; its first mask will come, or a refusal."""
        assert sampling.constraint is not None
        size = self._config.model.text.vocab_size
        eos_ids = tuple(i for i in self._config.model.eos_ids if 0 <= i < size)
        self._open.add(request_id)
        if not eos_ids:
            self._refuse(request_id, "this checkpoint has no end token")
            return
        if self._channel is None:
            self._start(Load(self._config.model_dir, size, eos_ids))
        num_held = _ALWAYS if sampling.ignore_eos else sampling.min_new_tokens - 1
        end_ids = {*eos_ids, *(i for i in sampling.stop_token_ids if 0 <= i < size)}
        self._ask(request_id, Open(request_id, sampling.constraint, num_held, tuple(end_ids)))

    def advance(self, request_id: int, token_id: int) -> None:
        """A token was drawn; the next mask will come."""
        self._ask(request_id, Advance(request_id, token_id))
        self._young.add(request_id)
        self._young_until_s = monotonic() + YOUNG_S

    def close(self, request_id: int) -> None:
        """A sequence has ended; one that isn't open is ignored."""
        if request_id not in self._open:
            return
        self._open.discard(request_id)
        self._answered(request_id)
        if self._channel is not None:
            try:
                self._channel.send(Close(request_id))
            except ChannelClosed:
                self._lost()

    def receive(self, *, wait: bool) -> list[Mask | Refusal]:
        """Returns the answers that have come.

        Args:
            wait: Whether to wait a moment for masks that were just asked for.
        """
        answers: list[Mask | Refusal] = []
        while True:
            answers += self._read()
            rest_s = self._young_until_s - monotonic()
            if not wait or not self._young or rest_s <= 0 or self._channel is None:
                break
            select.select([self._channel], [], [], rest_s)
        self._refuse_late()
        refusals, self._refusals = self._refusals, []
        return answers + list(refusals)

    def sleep(self, fd: int) -> None:
        """Sleeps until `fd` can be read, an answer comes, or one is late."""
        if self._refusals or self._channel is None:
            return
        rest_s = None
        if self._loaded and self._asked_s:
            rest_s = max(0.0, min(self._asked_s.values()) + LIMIT_S - monotonic())
        select.select([fd, self._channel.fileno()], [], [], rest_s)

    def _start(self, load: Load) -> None:
        ours, theirs = channel_pair()
        with theirs:
            command = [sys.executable, "-m", "lightvl.engine.grammar_worker"]
            self._process = subprocess.Popen(
                [*command, "--channel-fd", str(theirs.fileno())], pass_fds=(theirs.fileno(),)
            )
        self._channel = Channel(ours, FromGrammar)
        self._loaded = False
        self._channel.send(load)

    def _ask(self, request_id: int, message: Open | Advance) -> None:
        if self._channel is None:  # its process was lost
            self._refuse(request_id, "the grammar process was lost", 503)
            return
        self._asked_s[request_id] = monotonic()
        try:
            self._channel.send(message)
        except ChannelClosed:
            self._lost()

    def _read(self) -> list[Mask | Refusal]:
        if self._channel is None:
            return []
        try:
            messages = self._channel.recv_ready()
        except ChannelClosed:
            self._lost()
            return []
        answers = []
        for message in messages:
            if isinstance(message, Loaded):
                self._loaded = True
                self._asked_s = dict.fromkeys(self._asked_s, monotonic())
                continue
            self._late.discard(message.request_id)
            if self._answered(message.request_id):
                answers.append(message)
        return answers

    def _answered(self, request_id: int) -> bool:
        """Notes that a sequence no longer waits; returns whether it did."""
        self._young.discard(request_id)
        return self._asked_s.pop(request_id, None) is not None

    def _refuse(self, request_id: int, message: str, status: int = 400) -> None:
        self._answered(request_id)
        self._refusals.append(Refusal(request_id, message, status))

    def _refuse_late(self) -> None:
        if not self._loaded or not self._asked_s:
            return
        late_s = monotonic() - LIMIT_S
        for request_id in [i for i, asked_s in self._asked_s.items() if asked_s < late_s]:
            self._late.add(request_id)
            self._refuse(request_id, f"takes longer than {LIMIT_S:g} s to follow")

        if len(self._late) >= NUM_THREADS:  # every thread is at work on what nobody waits for
            assert self._process is not None
            self._process.kill()
            self._lost()

    def stop(self) -> int:
        """Ends the process, if it runs, and returns its exit code."""
        if self._channel is None or self._process is None:
            return 0
        self._channel.close()
        self._channel = None
        self._late.clear()
        return self._process.wait()

    def _lost(self) -> None:
        """The process has ended: its sequences are refused, the next one starts a new process."""
        code = self.stop()
        logger.error("the grammar process ended (%d); %d sequences end", code, len(self._open))
        for request_id in self._open:
            self._refuse(request_id, "the grammar process was lost", 503)
