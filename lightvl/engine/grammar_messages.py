"""What the engine and its grammar process say to each other; msgspec over a socketpair.

The engine sends `Load` once. For each constrained sequence it sends `Open`, then `Advance` after
each drawn token, each answered by one `Mask` or one `Refusal`, and `Close` at its end.
"""

import msgspec

from lightvl.types import Constraint

NUM_THREADS = 4
"""Sequences that the grammar process works on at once."""


class Load(msgspec.Struct, frozen=True, tag=True):
    """The first message: whose vocabulary masks are made over; answered by `Loaded`."""

    model_dir: str
    vocab_size: int
    eos_ids: tuple[int, ...]


class Open(msgspec.Struct, frozen=True, tag=True):
    """A sequence begins.

    Attributes:
        num_held: Tokens before which `end_ids` are held back while anything else is allowed.
    """

    request_id: int
    constraint: Constraint
    num_held: int
    end_ids: tuple[int, ...]


class Advance(msgspec.Struct, frozen=True, tag=True):
    """A token was drawn that didn't end the sequence."""

    request_id: int
    token_id: int


class Close(msgspec.Struct, frozen=True, tag=True):
    """A sequence has ended; never answered."""

    request_id: int


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The vocabulary is there."""


class Mask(msgspec.Struct, frozen=True, tag=True):
    """What the next token may be: a bit for each id, int32 [ceil(V/32)]."""

    request_id: int
    bits: bytes


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """A sequence can't go on; it is closed. `message` is a clause for the client."""

    request_id: int
    message: str
    status: int = 400


ToGrammar = Load | Open | Advance | Close
FromGrammar = Loaded | Mask | Refusal
