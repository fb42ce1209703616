"""The text of one sequence, made token by token, with stop strings."""

import codecs
from collections.abc import Sequence

from lightvl.tokenizer.tokenizer import Tokenizer

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class TextStream:
    """Turns ids into text as they come.

    Text is held back only while it could still become something else: bytes of an incomplete
    character, or, unless the stop text is kept, the beginning of a stop string.

    Args:
        tokenizer: Of the model that draws the ids.
        skip_special_tokens: Whether special tokens stay invisible.
        stop_strings: The text ends at the first of these.
        stop_ids: The text also ends behind the first of these id sequences.
        keep_stop: Whether the stop string itself belongs to the text.

    Attributes:
        text: What has been released so far.
        stopped: Whether a stop string or id sequence has been met; nothing may be pushed then.
    """

    __slots__ = (
        "_bytes_of", "_decoder", "_hidden", "_keep_stop", "_longest", "_pending", "_recent_ids",
        "_released", "_stop_ids", "_stop_prefixes", "_stop_strings", "_strip_space", "_tail",
        "stopped",
    )  # fmt: skip

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        stop_strings: Sequence[str] = (),
        stop_ids: Sequence[Sequence[int]] = (),
        keep_stop: bool = False,
    ) -> None:
        self._bytes_of = tokenizer.token_bytes
        self._decoder = _Utf8Decoder(errors="replace")
        self._hidden = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._strip_space = tokenizer.strips_first_space
        self._stop_strings = tuple(s for s in stop_strings if s)
        self._stop_ids = tuple(tuple(ids) for ids in stop_ids if ids)
        self._longest = max(map(len, self._stop_strings), default=0)
        self._stop_prefixes = tuple({s[:n] for s in self._stop_strings for n in range(1, len(s))})
        self._keep_stop = keep_stop
        self._recent_ids: tuple[int, ...] = ()
        self._released: list[str] = []
        self._tail = ""
        self._pending = ""
        self.stopped = False

    @property
    def text(self) -> str:
        """Everything released so far."""
        return "".join(self._released)

    def push(self, token_id: int, visible: bool | None = None) -> str:
        """Takes the next id.

        Args:
            token_id: The id drawn.
            visible: Overrides whether it is shown; by default special tokens are hidden when
                `skip_special_tokens` is set.

        Returns:
            The text that it releases, perhaps empty.
        """
        shown = token_id not in self._hidden if visible is None else visible
        new = self._decoder.decode(self._bytes_of(token_id)) if shown else ""
        if self._strip_space and new:
            new = new.removeprefix(" ")
            self._strip_space = False
        if self._stop_ids:
            self._match_ids(token_id)
        if not self._stop_strings:
            return self._release(new)
        return self._match_text(new)

    def finish(self) -> str:
        """Ends the sequence and returns what was held back; an incomplete character is U+FFFD."""
        if self.stopped and self._stop_strings:
            return ""
        rest = self._decoder.decode(b"", final=True)
        if not self._stop_strings:
            return self._release(rest)
        released = self._match_text(rest) if rest else ""
        if self.stopped:
            return released
        held, self._pending = self._pending, ""
        return released + self._release(held)

    def _release(self, text: str) -> str:
        if text:
            self._released.append(text)
        return text

    def _match_ids(self, token_id: int) -> None:
        longest = max(map(len, self._stop_ids))
        self._recent_ids = (*self._recent_ids, token_id)[-longest:]
        self.stopped = self.stopped or any(
            self._recent_ids[-len(ids) :] == ids for ids in self._stop_ids
        )

    def _match_text(self, new: str) -> str:
        """Looks for the earliest stop string that ends in `new`; releases what is certain."""
        window = self._tail + self._pending + new
        base = len(self._tail)
        found = [(at, s) for s in self._stop_strings if (at := window.find(s)) >= 0]
        if found:
            at, stop = min(found, key=lambda match: (match[0] + len(match[1]), match[0]))
            self.stopped = True
            end = at + len(stop) if self._keep_stop else at
            self._pending = ""
            return self._release(window[base:end])
        if self._keep_stop:
            self._tail = window[-(self._longest - 1) :] if self._longest > 1 else ""
            return self._release(new)
        held = self._num_held(window)
        self._pending = window[len(window) - held :]
        return self._release(window[: len(window) - held])

    def _num_held(self, window: str) -> int:
        """Returns the length of the longest end of `window` that begins a stop string."""
        if not window.endswith(self._stop_prefixes):
            return 0
        return max(len(prefix) for prefix in self._stop_prefixes if window.endswith(prefix))
