"""The grammar process: follows constrained sequences through their grammars, torch-free.

`python -m lightvl.engine.grammar_worker --channel-fd N`, started by the engine with its first
constrained sequence. Grammars are compiled and masks are made in threads, in which the library
lets the others run, so that a slow one holds up nobody else's. Ends when the channel closes.
"""

import argparse
import os
import resource
import signal
import sys
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

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
    ToGrammar,
)
from lightvl.grammar import LIMITS, BadConstraint, library_text, told
from lightvl.tokenizer.files import load_backend
from lightvl.tokenizer.tokenizer import Tokenizer
from lightvl.types import Constraint
from lightvl.utils.channel import Channel, ChannelClosed

_STACK_BYTES = 64 << 20
"""Of a thread: more than a media worker has, so that what passed there passes here."""
_NUM_COMPILED = 32
_NICENESS = 2
_SPARE_BYTES = 2 << 30


@dataclass(slots=True)
class _State:
    """One sequence: its matcher and how many tokens it has."""

    opened: Open
    matcher: LLMatcher
    num_tokens: int = 0


class _Vocabulary:
    """The tokenizer in the form in which the library reads it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: tuple[int, ...]) -> None:
        self.eos_token_id = eos_ids[0]
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(i) for i in range(vocab_size)]
        self.special_token_ids = [i for i in sorted(tokenizer.special_ids) if i < vocab_size]
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode_plain(text.decode(errors="replace"))


class Grammars:
    """All open sequences.

    Args:
        load: Whose vocabulary.
        channel: Takes the answers.
    """

    def __init__(self, load: Load, channel: Channel[ToGrammar]) -> None:
        tokenizer = Tokenizer(load_backend(Path(load.model_dir)), None, load.eos_ids)
        vocabulary = _Vocabulary(tokenizer, load.vocab_size, load.eos_ids)
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(vocabulary), n_vocab=load.vocab_size, eos_token=list(load.eos_ids)
        )
        self._num_words = -(-load.vocab_size // 32)
        self._channel = channel
        self._sending = threading.Lock()
        threading.stack_size(_STACK_BYTES)
        self._threads = ThreadPoolExecutor(NUM_THREADS)
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._states: dict[int, _State | None] = {}

    def handle(self, message: Open | Advance | Close) -> None:
        """Takes a message; the answer comes from a thread."""
        if isinstance(message, Close):
            self._states.pop(message.request_id, None)
            return
        if isinstance(message, Open):
            self._states[message.request_id] = None
        self._threads.submit(self._answer, message)

    def _answer(self, message: Open | Advance) -> None:
        reply: FromGrammar
        try:
            if isinstance(message, Open):
                state: _State | None = _State(message, self._matcher(message.constraint))
                if message.request_id in self._states:  # else it has been closed meanwhile
                    self._states[message.request_id] = state
            else:
                state = self._states.get(message.request_id)
                if state is not None:
                    state.matcher.consume_token(message.token_id)
                    state.num_tokens += 1
            if state is None:
                raise BadConstraint("closed")
            reply = Mask(message.request_id, self._mask(state))
        except BadConstraint as error:
            self._states.pop(message.request_id, None)
            reply = Refusal(message.request_id, str(error))
        self._send(reply)

    def _matcher(self, constraint: Constraint) -> LLMatcher:
        """Returns a matcher of its own at the grammar's beginning."""
        compiled = self._compiled.get(constraint)
        if compiled is None:
            compiled = LLMatcher(
                self._tokenizer, library_text(constraint), log_level=0, limits=LIMITS
            )
            if not compiled.is_error():
                compiled.compute_bitmask()  # copies begin with what this finds out
            self._compiled[constraint] = compiled
            if len(self._compiled) > _NUM_COMPILED:
                self._compiled.popitem(last=False)
        if compiled.is_error():
            raise BadConstraint(told(constraint, compiled.get_error()))
        return compiled.deep_copy()

    def _mask(self, state: _State) -> bytes:
        matcher, opened = state.matcher, state.opened
        words = np.zeros(self._num_words, dtype=np.uint32)
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if matcher.is_error():
            raise BadConstraint("too complex to follow")
        if state.num_tokens < opened.num_held:
            others = words.copy()
            for token_id in opened.end_ids:
                others[token_id // 32] &= ~np.uint32(1 << token_id % 32)
            words = others if others.any() else words
        if not words.any():
            raise BadConstraint("a text that no token continues")
        return words.tobytes()

    def _send(self, reply: FromGrammar) -> None:
        with self._sending:
            try:
                self._channel.send(reply)
            except ChannelClosed:
                os._exit(0)


def main(arguments: list[str] | None = None) -> int:
    """Serves until the channel closes; returns the exit code."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--channel-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICENESS)
    channel: Channel[ToGrammar] = Channel.from_fd(options.channel_fd, ToGrammar)
    try:
        load = channel.recv()
        assert isinstance(load, Load)
        grammars = Grammars(load, channel)
        _limit_memory()
        channel.send(Loaded())
        while True:
            message = channel.recv()
            assert not isinstance(message, Load)
            grammars.handle(message)
    except ChannelClosed:
        os._exit(0)  # threads may be at work on what nobody waits for


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + _SPARE_BYTES
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main())
