"""Pictures inside requests and in local files."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from lightvl.multimodal import sources
from lightvl.multimodal.sources import Base64Source, FileSource, SourceError

BODY = b"picture bytes " * 1000


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


async def refused(awaitable: Awaitable[object]) -> str:
    with pytest.raises(SourceError) as caught:
        await awaitable
    return str(caught.value)


async def read(source: FileSource | Base64Source) -> bytes:
    room = bytearray(source.num_bytes or 0)
    count = await source.read_into(memoryview(room))
    await source.close()
    await source.close()
    return bytes(room[:count])


@pytest.mark.parametrize(
    "text",
    [
        *("aGVsbG8=", "aGVsbG8", " aGVs\nbG8= \r\n", "data:image/png;base64,aGVsbG8="),
        *("DATA:;BASE64,aGVsbG8=", "data:image/png;charset=x;base64,aGVsbG8%3D"),
    ],
)
def test_base64(text: str) -> None:
    async def test() -> None:
        assert await read(Base64Source(text, 5)) == b"hello"

    run(test())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *[(t, "is not valid base64") for t in ("a", "aGVsbG8*", "äöü", "aGVs=bG8", "a===")],
        *[(t, "is not valid base64") for t in ("data:,hello", "data:image/png,aGVs", "data:")],
        *[(t, "is empty") for t in ("", " ", "data:;base64,")],
        ("aGVsbG8h", "has 6 bytes, at most 5 are allowed"),
    ],
)
def test_bad_base64(text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        Base64Source(text, 5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "open-too").mkdir()
    (tmp_path / "open-too" / "outside").write_bytes(b"secret")
    folder = tmp_path / "open"
    (folder / "deeper").mkdir(parents=True)
    (folder / "deeper" / "a.png").write_bytes(BODY)
    (folder / "inner-link").symlink_to(folder / "deeper" / "a.png")
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "link-folder").symlink_to(tmp_path)
    return folder


@pytest.mark.parametrize("name", ["deeper/a.png", "inner-link", "deeper/../inner-link"])
def test_files_below_the_folder(folder: Path, name: str) -> None:
    async def test() -> None:
        source = await FileSource.open(f"{folder}/{name}", str(folder), 100_000)
        assert source.num_bytes == len(BODY)
        assert await read(source) == BODY

    run(test())


@pytest.mark.parametrize(
    "name",
    [
        *("missing", "link", "link-folder/outside", "../outside", "../open-too/outside", "deeper"),
        *("deeper/../../outside", ""),
    ],
)
def test_files_elsewhere_are_refused_like_missing_ones(folder: Path, name: str) -> None:
    async def test() -> None:
        text = await refused(FileSource.open(f"{folder}/{name}", str(folder), 100_000))
        assert text == "can't be read: no such file is allowed"

    run(test())


def test_a_file_that_is_too_long(folder: Path) -> None:
    async def test() -> None:
        path = f"{folder}/inner-link"
        text = await refused(FileSource.open(path, str(folder), len(BODY) - 1))
        assert text == f"is larger than the {len(BODY) - 1} bytes allowed"

    run(test())


@pytest.mark.parametrize("stage", ["_open_below", "_read_all"])
def test_a_cancelled_request_ends_with_its_thread(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "picture").write_bytes(BODY)
    may_go_on, inside, over = threading.Event(), threading.Event(), threading.Event()
    usual = getattr(sources, stage)

    def held_up(*arguments: object) -> object:
        inside.set()
        may_go_on.wait(10)
        result = usual(*arguments)
        over.set()
        return result

    monkeypatch.setattr(sources, stage, held_up)

    async def use() -> None:
        source = await FileSource.open(f"{tmp_path}/picture", str(tmp_path), 100_000)
        try:
            await source.read_into(memoryview(bytearray(len(BODY))))
        finally:
            await source.close()

    async def test() -> None:
        task = asyncio.create_task(use())
        await asyncio.to_thread(inside.wait)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=0.05)
        assert not done  # the thread may still write to the room
        may_go_on.set()
        await asyncio.wait([task])
        assert task.cancelled()
        assert over.is_set()

    num_files = len(os.listdir("/proc/self/fd"))
    run(test())
    assert len(os.listdir("/proc/self/fd")) == num_files
