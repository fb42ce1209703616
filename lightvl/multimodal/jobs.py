"""What the front asks of a media worker and what it answers; msgspec over a socketpair.

The front sends `Start` once, then one job at a time; each is answered by its own reply or by
`Refused`. Bytes and pixels never travel here: they lie in the arena and messages name offsets.
"""

import msgspec

from lightvl.types import Constraint


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first message: the arena's size and the limits.

    Attributes:
        max_body_bytes: Of one request's body.
        job_cpu_s: Processor time of one job, after which the worker is killed.
    """

    arena_bytes: int
    max_body_bytes: int
    max_image_bytes: int
    max_image_pixels: int
    max_images: int
    job_cpu_s: int


class Inspect(msgspec.Struct, frozen=True, tag=True):
    """Hash the picture at `offset` and read its header; answered by `Inspected`."""

    offset: int
    num_bytes: int


class Decode(msgspec.Struct, frozen=True, tag=True):
    """Decode the picture at `offset` to RGB uint8 [height, width, 3] at `pixels_offset`.

    Width and height are those of `Inspected`. Answered by `Decoded`.
    """

    offset: int
    num_bytes: int
    pixels_offset: int
    width: int
    height: int


class ParseBody(msgspec.Struct, frozen=True, tag=True):
    """Take the JSON body at `offset` apart; answered by `Parsed`.

    Its base64 pictures are decoded and written over the body from its start on.
    """

    offset: int
    num_bytes: int


class CheckConstraint(msgspec.Struct, frozen=True, tag=True):
    """Try a constraint, which may end the worker; answered by `Checked`."""

    constraint: Constraint


class Checked(msgspec.Struct, frozen=True, tag=True):
    """The constraint can be used, as far as that shows without the vocabulary."""


class Inspected(msgspec.Struct, frozen=True, tag=True):
    """A picture's digests and its size after EXIF orientation."""

    md5: str
    sha256: bytes
    width: int
    height: int


class Decoded(msgspec.Struct, frozen=True, tag=True):
    """The pixels are written."""


class BodyPicture(msgspec.Struct, frozen=True):
    """A picture that was inside a body.

    Attributes:
        reference: What stands in the JSON in its place; nobody can guess it.
        offset: Where its bytes begin in the arena.
    """

    reference: str
    offset: int
    num_bytes: int
    inspected: Inspected


class Parsed(msgspec.Struct, frozen=True, tag=True):
    """A body's JSON without its pictures.

    Attributes:
        used_bytes: How much of the body's room the pictures take; the rest is free.
    """

    json: bytes
    pictures: list[BodyPicture]
    used_bytes: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The job can't be done; `message` is for the client, as a clause without a subject.

    Attributes:
        index: Which of the body's pictures is at fault, if one is.
    """

    message: str
    status: int = 400
    index: int | None = None


Job = Inspect | Decode | ParseBody | CheckConstraint
ToWorker = Start | Inspect | Decode | ParseBody | CheckConstraint
Reply = Inspected | Decoded | Parsed | Checked | Refused
