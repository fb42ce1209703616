"""The arena and its allocator."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightvl.utils.shm import Arena, ArenaAllocator


def allocator() -> ArenaAllocator:
    return ArenaAllocator(arena_bytes=100, bytes_in_flight=60, largest_request=20)


def test_a_child_sees_what_the_parent_wrote_and_the_other_way_round() -> None:
    arena = Arena.create(1 << 16)
    arena.buffer[1000:1005] = b"hello"
    code = (
        "import sys; from lightvl.utils.shm import Arena\n"
        "arena = Arena.attach(int(sys.argv[1]), 1 << 16)\n"
        "arena.buffer[2000:2005] = bytes(arena.buffer[1000:1005]).upper()\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", code, str(arena.fd)], pass_fds=[arena.fd], check=True, cwd=root
    )
    assert bytes(arena.buffer[2000:2005]) == b"HELLO"
    arena.close()


def test_nobody_can_resize_the_arena_under_the_others() -> None:
    arena = Arena.create(1 << 16)
    for size in (0, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, size)
    arena.close()


def test_closing_while_a_slice_lives_is_no_error() -> None:
    arena = Arena.create(1 << 16)
    part = arena.buffer[5:10]
    arena.close()
    part[:] = b"still"
    assert bytes(part) == b"still"


def test_zones_do_not_disturb_each_other() -> None:
    async def run() -> None:
        room = allocator()
        first = await room.alloc(40, "request")
        waiting = asyncio.ensure_future(room.alloc(1, "request"))
        more = await asyncio.wait_for(room.alloc(20, "more"), 1)
        pixels = await asyncio.wait_for(room.alloc(40, "pixels"), 1)
        assert (first.offset, more.offset, pixels.offset) == (0, 40, 60)
        assert room.num_waiting("request") == 1
        room.free(first)
        assert (await waiting).offset == 0

    asyncio.run(run())


def test_first_come_first_served_even_where_a_later_one_fits() -> None:
    async def run() -> None:
        room = allocator()
        held = await room.alloc(30, "pixels")
        order: list[str] = []

        async def ask(name: str, size: int) -> None:
            await room.alloc(size, "pixels")
            order.append(name)

        tasks = [asyncio.create_task(ask("big", 35)), asyncio.create_task(ask("small", 5))]
        await asyncio.sleep(0.01)
        assert order == []
        room.free(held)
        await asyncio.gather(*tasks)
        assert order == ["big", "small"]

    asyncio.run(run())


def test_a_cancelled_waiter_lets_those_behind_it_through() -> None:
    async def run() -> None:
        room = allocator()
        await room.alloc(30, "pixels")
        big = asyncio.create_task(room.alloc(35, "pixels"))
        small = asyncio.create_task(room.alloc(5, "pixels"))
        await asyncio.sleep(0)
        big.cancel()
        assert (await asyncio.wait_for(small, 1)).size == 5
        assert room.used_bytes("pixels") == 35

    asyncio.run(run())


def test_room_given_to_a_waiter_that_is_cancelled_at_once_comes_back() -> None:
    async def run() -> None:
        room = allocator()
        held = await room.alloc(40, "pixels")
        task = asyncio.create_task(room.alloc(40, "pixels"))
        await asyncio.sleep(0)
        room.free(held)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert room.used_bytes("pixels") == 0

    asyncio.run(run())


def test_room_is_free_when_its_last_user_is_done() -> None:
    async def run() -> None:
        room = allocator()
        region = await room.alloc(10, "request")
        room.retain(region)
        room.free(region)
        assert room.used_bytes("request") == 10
        room.free(region)
        assert room.used_bytes("request") == 0

    asyncio.run(run())


def test_more_than_a_zone_can_ever_hold_is_an_error() -> None:
    with pytest.raises(ValueError, match="41 bytes wanted of a zone of 40"):
        asyncio.run(allocator().alloc(41, "pixels"))


@pytest.mark.parametrize(("in_flight", "largest"), [(39, 20), (100, 20)])
def test_zones_that_can_not_be_cut_are_refused(in_flight: int, largest: int) -> None:
    with pytest.raises(ValueError, match="can't cut"):
        ArenaAllocator(100, in_flight, largest)
