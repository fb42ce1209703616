"""The arena's allocator against a naive model: a byte map and a list."""

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lightvl.utils.shm import ArenaAllocator, Purpose, Region

ZONES: dict[Purpose, tuple[int, int]] = {"request": (0, 40), "more": (40, 60), "pixels": (60, 100)}


class Model:
    """One zone as a byte map; first fit by scanning, strictly in order."""

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.taken = [False] * (end - start)
        self.line: list[tuple[int, int]] = []  # (ticket, size)

    def ask(self, ticket: int, size: int) -> dict[int, int]:
        self.line.append((ticket, size))
        return self.serve()

    def give(self, offset: int, size: int) -> dict[int, int]:
        at = offset - self.start
        assert all(self.taken[at : at + size])
        self.taken[at : at + size] = [False] * size
        return self.serve()

    def serve(self) -> dict[int, int]:
        served = {}
        while self.line:
            ticket, size = self.line[0]
            places = range(len(self.taken) - size + 1)
            at = next((p for p in places if not any(self.taken[p : p + size])), None)
            if at is None:
                break
            self.taken[at : at + size] = [True] * size
            served[ticket] = self.start + at
            self.line.pop(0)
        return served


class AllocatorMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.room = ArenaAllocator(100, 60, 20)
        self.models = {purpose: Model(*ends) for purpose, ends in ZONES.items()}
        self.tasks: dict[int, asyncio.Task[Region]] = {}
        self.purposes: dict[int, Purpose] = {}
        self.held: dict[int, Region] = {}
        self.tickets = 0

    def teardown(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def settle(self, expected: dict[int, int]) -> None:
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))
        done = {ticket: task for ticket, task in self.tasks.items() if task.done()}
        assert {t: task.result().offset for t, task in done.items()} == expected
        for ticket, task in done.items():
            self.held[ticket] = task.result()
            del self.tasks[ticket]

    @rule(purpose=st.sampled_from(list(ZONES)), size=st.integers(0, 20))
    def alloc(self, purpose: Purpose, size: int) -> None:
        self.tickets += 1
        self.tasks[self.tickets] = self.loop.create_task(self.room.alloc(size, purpose))
        self.purposes[self.tickets] = purpose
        self.settle(self.models[purpose].ask(self.tickets, max(1, size)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        region = self.held.pop(data.draw(st.sampled_from(sorted(self.held))))
        self.room.free(region)
        self.settle(self.models[region.purpose].give(region.offset, region.size))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), keep=st.integers(0, 25))
    def shrink(self, data: st.DataObject, keep: int) -> None:
        region = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        tail = region.size - max(1, keep)
        self.room.shrink(region, keep)
        if tail > 0:
            offset = region.offset + region.size
            self.settle(self.models[region.purpose].give(offset, tail))

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.tasks)))
        self.tasks.pop(ticket).cancel()
        model = self.models[self.purposes[ticket]]
        model.line = [waiter for waiter in model.line if waiter[0] != ticket]
        self.settle(model.serve())

    @invariant()
    def same_use(self) -> None:
        for purpose, model in self.models.items():
            assert self.room.used_bytes(purpose) == sum(model.taken)
            assert self.room.num_waiting(purpose) == len(model.line)

    @rule()
    def everybody_is_served_in_the_end(self) -> None:
        while self.held:
            _, region = self.held.popitem()
            self.room.free(region)
            self.settle(self.models[region.purpose].give(region.offset, region.size))
        assert not self.tasks


TestAllocator = AllocatorMachine.TestCase
TestAllocator.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
