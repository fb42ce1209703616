"""What the front knows of pictures: the limits, where they come from, where they lie."""

from dataclasses import dataclass
from typing import Literal

import msgspec

from lightvl.errors import RequestError
from lightvl.multimodal.jobs import Refused, Reply
from lightvl.utils.shm import Region


class MediaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and limits; see the flags of the same names.

    Attributes:
        fetch_timeout_s: For one picture from the web.
        job_timeout_s: For one job of a media worker, in wall and in processor time.
    """

    num_workers: int
    arena_bytes: int
    bytes_in_flight: int
    max_body_bytes: int
    max_image_bytes: int
    max_image_pixels: int
    max_images: int
    allowed_domains: tuple[str, ...] = ()
    allow_private: bool = False
    local_path: str | None = None
    fetch_timeout_s: float = 5.0
    proxy: str | None = None
    job_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A picture as a request names it: an address, base64 text, or what `parse_body` put there.

    Attributes:
        max_tiles: Bound of its tiles, beside the request's; None for no other.
    """

    type: Literal["url", "base64"]
    data: str
    max_tiles: int | None = None


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """A picture whose bytes are in the arena.

    Attributes:
        index: Which of the request's pictures, for messages.
        md5: Of the bytes as sent, in hex.
        sha256: Of the same bytes, 32 bytes.
        width: Pixels, after EXIF orientation.
        height: Pixels, after EXIF orientation.
        region: Room of the arena that holds its bytes, perhaps among others.
        offset: Where they begin in the arena.
        num_bytes: How many they are.
    """

    index: int
    md5: str
    sha256: bytes
    width: int
    height: int
    region: Region
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class PixelRegion:
    """RGB uint8 [height, width, 3] at `offset` in the arena."""

    offset: int
    width: int
    height: int
    region: Region


def check_reply(reply: Reply, index: int | None = None) -> None:
    """Raises what a worker refused, as the client is told.

    Args:
        reply: What the worker said.
        index: Which picture it was asked about; None for a body.

    Raises:
        RequestError: The reply is `Refused`.
    """
    if isinstance(reply, Refused):
        at_fault = reply.index if reply.index is not None else index
        if at_fault is not None:
            raise bad_image(at_fault, reply.message)
        raise RequestError(f"the body {reply.message}", reply.status)


def bad_image(index: int, message: str) -> RequestError:
    """Returns the error that says what is wrong with a picture."""
    name = f"images[{index}]"
    return RequestError(f"{name}: {message}", param=name, code="invalid_image")
