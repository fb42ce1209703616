"""A media worker: a process that takes bodies apart and decodes pictures, one job at a time.

`python -m lightvl.multimodal.worker --channel-fd N --arena-fd M`, started by the front. What comes
in may be hostile: memory, processor time and descriptors are limited before the first job, files,
networks and programs are given up (`lightvl/multimodal/sandbox.py`), and the front kills a worker
that takes too long. Ends when the channel closes or its parent is gone.
"""

import argparse
import ctypes
import hashlib
import logging
import os
import resource
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from lightvl.grammar import BadConstraint, check
from lightvl.multimodal.base64 import BadBase64, data_url_payload, decode_base64, is_data_url
from lightvl.multimodal.decode import BadPicture, decode_picture, picture_size
from lightvl.multimodal.jobs import (
    BodyPicture,
    CheckConstraint,
    Checked,
    Decode,
    Decoded,
    Inspect,
    Inspected,
    Job,
    ParseBody,
    Parsed,
    Refused,
    Reply,
    Start,
    ToWorker,
)
from lightvl.multimodal.sandbox import confine
from lightvl.utils.channel import Channel, ChannelClosed
from lightvl.utils.duplicate_keys import DuplicateKeyError, refuse_duplicate_keys
from lightvl.utils.shm import Arena

MAX_TEXT_BYTES = 4 << 20
"""Most bytes of a body without its pictures; the front parses that much on its event loop."""

CHECK_CPU_S = 1
"""Processor time, one second more at most, in which a constraint must be tried."""

_BYTES_PER_PIXEL = 32
"""Bound of what decoding holds at once: Pillow's four bytes a pixel, in several copies."""
_BYTES_PER_BODY_BYTE = 8
_SPARE_BYTES = 256 << 20
_SPARE_FILES = 4
_NICENESS = 5
"""Below the engine: its threads wait for each other, so that losing one time slice costs many."""
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def main(argv: list[str] | None = None) -> int:
    """Serves jobs until the channel closes; returns the exit code."""
    parser = argparse.ArgumentParser(prog="lightvl.multimodal.worker", allow_abbrev=False)
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--arena-fd", type=int, required=True)
    args = parser.parse_args(argv)
    os.nice(_NICENESS)
    _follow_parent()
    _silence_libraries()
    channel: Channel[ToWorker] = Channel.from_fd(args.channel_fd, ToWorker)
    try:
        start = channel.recv()
        assert isinstance(start, Start)
        worker = Worker(start, Arena.attach(args.arena_fd, start.arena_bytes).buffer)
        limit_process(start)
        confine()
        while True:
            job = channel.recv()
            assert not isinstance(job, Start)
            is_check = isinstance(job, CheckConstraint)
            _limit_cpu(CHECK_CPU_S if is_check else start.job_cpu_s)
            channel.send(worker.answer(job))
    except ChannelClosed:
        return 0


class Worker:
    """Does jobs on the arena.

    Args:
        limits: What bodies and pictures may be.
        arena: The whole arena.
    """

    def __init__(self, limits: Start, arena: memoryview) -> None:
        self._limits = limits
        self._arena = arena

    def answer(self, job: Job) -> Reply:
        """Does a job; whatever goes wrong with it becomes `Refused`."""
        try:
            if isinstance(job, Inspect):
                return self._inspect(self._arena[job.offset : job.offset + job.num_bytes])
            if isinstance(job, Decode):
                return self._decode(job)
            if isinstance(job, CheckConstraint):
                check(job.constraint)
                return Checked()
            return self._parse(job)
        except (BadPicture, BadConstraint) as error:
            return Refused(str(error))
        except MemoryError:
            return Refused("needs too much memory")

    def _inspect(self, data: memoryview | bytes) -> Inspected:
        width, height = picture_size(bytes(data), self._limits.max_image_pixels)
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return Inspected(md5, hashlib.sha256(data).digest(), width, height)

    def _decode(self, job: Decode) -> Decoded:
        data = bytes(self._arena[job.offset : job.offset + job.num_bytes])
        end = job.pixels_offset + 3 * job.width * job.height
        pixels = self._arena[job.pixels_offset : end]
        decode_picture(data, pixels, job.width, job.height, self._limits.max_image_pixels)
        return Decoded()

    def _parse(self, job: ParseBody) -> Parsed | Refused:
        data = bytes(self._arena[job.offset : job.offset + job.num_bytes])
        try:
            body = msgspec.json.decode(data)
            refuse_duplicate_keys(data)
        except DuplicateKeyError as error:
            return Refused(f"{error}: given twice in one object")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Refused("is not valid JSON")
        end = job.offset
        pictures = []
        for index, (payload, replace) in enumerate(_pictures(body)):
            if index == self._limits.max_images:
                return Refused(f"has more than {index} images, the most allowed in a request")
            if payload is None:
                continue
            try:
                picture = self._decode_base64(payload)
                inspected = self._inspect(picture)
            except BadPicture as error:
                return Refused(str(error), index=index)
            self._arena[end : end + len(picture)] = picture
            pictures.append(BodyPicture(secrets.token_hex(16), end, len(picture), inspected))
            end += len(picture)
            replace(pictures[-1].reference)
        text = msgspec.json.encode(body)
        if len(text) > MAX_TEXT_BYTES:
            most = MAX_TEXT_BYTES >> 20
            return Refused(f"is over {most} MiB without its pictures", status=413)
        return Parsed(text, pictures, end - job.offset)

    def _decode_base64(self, payload: str) -> bytes:
        try:
            return decode_base64(payload, self._limits.max_image_bytes)
        except BadBase64 as error:
            raise BadPicture(str(error)) from None


Place = tuple[str | None, Callable[[str], None]]
"""A picture's base64 text, or None for one that lies elsewhere; and what puts text in its place."""


def _pictures(body: object) -> Iterator[Place]:
    """Yields the pictures of a native or OpenAI body, in the order that gives them their index."""
    for image in _items(_get(_get(body, "multimodal_params"), "images")):
        data = _get(image, "data")
        inline = _get(image, "type") == "base64" or is_data_url(data)
        yield _place(image, "data", data if inline else None)
    for message in _items(_get(body, "messages")):
        for part in _items(_get(message, "content")):
            if _get(part, "type") == "image_url":
                holder = _get(part, "image_url")
                url = _get(holder, "url")
                yield _place(holder, "url", url if is_data_url(url) else None)
    for item in _items(_get(body, "input")):
        for part in _items(_get(item, "content")):
            if _get(part, "type") == "input_image":
                url = _get(part, "image_url")
                yield _place(part, "image_url", url if is_data_url(url) else None)


def _place(holder: Any, name: str, text: object) -> Place:  # noqa: ANN401
    payload = data_url_payload(text) if isinstance(text, str) else None
    return payload, lambda reference: holder.__setitem__(name, reference)


def _get(holder: object, name: str) -> object:
    return holder.get(name) if isinstance(holder, dict) else None


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def limit_process(start: Start) -> None:
    """Limits memory and files to what is in use now and what the largest job needs."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    largest_job = max(
        _BYTES_PER_PIXEL * start.max_image_pixels, _BYTES_PER_BODY_BYTE * start.max_body_bytes
    )
    _lower(resource.RLIMIT_AS, mapped + largest_job + _SPARE_BYTES)
    _lower(resource.RLIMIT_NOFILE, max(map(int, os.listdir("/proc/self/fd"))) + _SPARE_FILES)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(kind: int, value: int) -> None:
    """Sets a limit for good, never above the one that holds already."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _limit_cpu(seconds: int) -> None:
    """Lets the kernel kill this process when it has used so much more processor time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime) + 1 + seconds
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(
        resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
    )


def _follow_parent() -> None:
    """Dies with the front, and only with it: it drains on the signals that end a whole group."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _silence_libraries() -> None:
    """Lets only this package write to the log; libraries would tell it what clients sent."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
