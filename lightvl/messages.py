"""What the front and the engine's rank 0 say to each other; msgspec over a socketpair.

Every message is one length-prefixed msgpack value (`lightvl.utils.channel`). Pixels never travel
here: they lie in the shared-memory arena and messages name their offsets.

A request's life on the wire: `AddRequest` -> (`NeedPixels` -> `Pixels` -> `PixelsDone`)* ->
`Started` -> `StepOutputs`* with a `finish_reason` in the last one. `Abort` may come at any time,
also for a request that has ended; it is never answered. When the front can't supply pixels it
aborts that request, and the engine asks the next request that waits for the same picture.
`Rejected` ends a request whose constraint can't be used, before or after its first token.
"""

import msgspec

from lightvl.config import EngineConfig
from lightvl.types import FinishReason, ImageSlot, SamplingParams

# --- front -> engine -------------------------------------------------------------------------


class Init(msgspec.Struct, frozen=True, tag=True):
    """The first message: everything the engine needs to load and plan its memory."""

    config: EngineConfig


class AddRequest(msgspec.Struct, frozen=True, tag=True):
    """A tokenized sequence to generate.

    Attributes:
        request_id: Unique among live requests.
        token_ids: The whole prompt; inside pictures any valid id stands as a filler.
        images: Pictures in order of `start`.
        priority: Smaller runs earlier; equal ones in turns of their clients, those of one client
            first come, first served.
        salt: Prefix-cache namespace; sequences share pages only when it is equal.
        client: Who sent it; clients that wait together get equal shares.
    """

    request_id: int
    token_ids: list[int]
    sampling: SamplingParams
    images: list[ImageSlot] = []
    priority: int = 0
    salt: bytes = b""
    client: bytes = b""


class Pixels(msgspec.Struct, frozen=True, tag=True):
    """Decoded RGB of one picture, uint8 [height, width, 3] at `offset` in the arena."""

    key: bytes
    offset: int
    width: int
    height: int


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Ends a request wherever it is; everything it holds is freed."""

    request_id: int


class FlushCaches(msgspec.Struct, frozen=True, tag=True):
    """Drops unreferenced embeddings and prefix pages."""


class GetStats(msgspec.Struct, frozen=True, tag=True):
    """Asks for one `Stats`."""


# --- engine -> front -------------------------------------------------------------------------


class Loading(msgspec.Struct, frozen=True, tag=True):
    """A start-up step in words, for the log."""

    text: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine serves.

    Attributes:
        max_total_token_num: KV tokens there are.
        max_req_total_len: Longest prompt plus output of one request, perhaps lowered to fit.
        notes: One line per choice made at start (device, kernels, memory).
        max_request_tiles: Most tiles that the pictures of one request may have together.
    """

    max_total_token_num: int
    max_req_total_len: int
    notes: list[str] = []
    max_request_tiles: int = 0


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine can't start and exits; `exit_code` is the server's."""

    message: str
    exit_code: int


class NeedPixels(msgspec.Struct, frozen=True, tag=True):
    """The picture `key` must be decoded; `request_id` is a request that carries its bytes."""

    request_id: int
    key: bytes


class PixelsDone(msgspec.Struct, frozen=True, tag=True):
    """The pixels of `key` at `offset` are no longer read: that room in the arena is free.

    Attributes:
        ago_s: How long before this message they had become patches, in seconds; None if they were
            not read at all.
    """

    key: bytes
    offset: int
    ago_s: float | None = None


class Started(msgspec.Struct, frozen=True, tag=True):
    """A request was admitted: its prefill begins.

    Attributes:
        cached_tokens: Prompt tokens taken from the prefix cache.
        cached_images: For each picture, whether it needed no tower run in this request.
    """

    request_id: int
    cached_tokens: int
    cached_images: list[bool]


class Rejected(msgspec.Struct, frozen=True, tag=True):
    """A request ends because of what it asked for; `param` is the field at fault."""

    request_id: int
    message: str
    param: str | None = None
    status: int = 400


class Encoded(msgspec.Struct, frozen=True, tag=True):
    """The tower has run every tile of these pictures; told for the requests' times alone.

    Attributes:
        ago_s: How long before this message was sent, in seconds.
    """

    keys: list[bytes]
    ago_s: float


class TokenOutput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One new token of one sequence; `token_id` is -1 when it ended without one (an abort)."""

    request_id: int
    token_id: int
    finish_reason: FinishReason | None = None
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] | None = None


class StepOutputs(msgspec.Struct, frozen=True, tag=True):
    """All that one step produced, every sequence in one message."""

    outputs: list[TokenOutput]


class Stats(msgspec.Struct, frozen=True, tag=True):
    """Gauges and counters since start, by metric name without the prefix."""

    values: dict[str, float]


ToEngine = Init | AddRequest | Pixels | Abort | FlushCaches | GetStats
ToFront = (
    Loading
    | Ready
    | Failed
    | NeedPixels
    | PixelsDone
    | Started
    | Encoded
    | Rejected
    | StepOutputs
    | Stats
)
