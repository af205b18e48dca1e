"""Writers and readers that have lost their lease and go on all the same: nothing that is kept ever changes.

The processes are played by second mappings of the same memory, as they have them.
"""

import asyncio
import contextlib
import itertools
import mmap
import socket
from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shared.errors import LaneBroken, Overloaded
from shared.lanes.shared_memory.client import AttachedClient
from shared.lanes.shared_memory.messages import NUMBER
from shared.lanes.slabs import SLAB_BYTES
from shared.lanes.slots import SlotMemory
from tests.support.waiting import LIMIT_S, until

SIZES = st.sampled_from([49152, 3 << 20, SLAB_BYTES // 2])
NUM_SLABS = 5
MAX_STREAMS = 6


def look(view: memoryview | bytes) -> bytes:
    """Return what is in some places of a payload: whoever writes to one writes all of it."""
    middle = len(view) // 2
    return bytes(view[:8]) + bytes(view[middle : middle + 8]) + bytes(view[-8:])


class Process:
    """A process that has the memory mapped: what it was told, and whether that is still true is not its concern."""

    def __init__(self, memory: SlotMemory, number: int) -> None:
        assert memory.fd is not None
        self.mapping = mmap.mmap(memory.fd, memory.size_bytes)
        ours, self.end = socket.socketpair()
        ours.setblocking(False)
        self.client = AttachedClient(number, ours, MAX_STREAMS, memory.touched_bytes, lambda _: None)
        self.next_stream = 1
        self.room: dict[int, list[tuple[int, int]]] = {}  # stream -> places and sizes to write to
        self.reading: dict[int, list[tuple[int, int, bytes]]] = {}  # stream -> places, sizes, what must be there

    def streams(self) -> list[int]:
        return [*self.room, *self.reading]

    def new_stream(self) -> int:
        self.next_stream += 1
        return self.next_stream - 1

    def end_all(self) -> None:
        self.mapping.close()
        self.end.close()


class Zombies(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.memory = SlotMemory(NUM_SLABS * SLAB_BYTES, shared=True)
        self.processes: list[Process] = []
        self.kept: list[tuple[memoryview, bytes]] = []
        self.leases: dict[tuple[int, int], list[memoryview]] = {}  # by process and stream: room that was not placed
        self.mark = 0

    def payload(self, size: int) -> bytes:
        self.mark = self.mark % 255 + 1
        return bytes([self.mark]) * size

    def step(self, condition: Callable[[], object]) -> None:
        self.loop.run_until_complete(until(condition, LIMIT_S))

    @precondition(lambda self: len(self.processes) < 3)
    @rule()
    def attach(self) -> None:
        async def attached() -> Process:
            self.mark += 1
            return Process(self.memory, self.mark)

        self.processes.append(self.loop.run_until_complete(attached()))

    @rule(size=SIZES, count=st.integers(1, 3))
    def keep_what_came_in_messages(self, size: int, count: int) -> None:
        self.keep([size] * count)

    def keep(self, sizes: Iterable[int]) -> None:
        with contextlib.suppress(Overloaded):
            for size in sizes:
                payload = self.payload(size)
                self.kept.append((self.memory.keep(payload), look(payload)))

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), size=SIZES, count=st.integers(1, 3))
    def give_room(self, data: Any, size: int, count: int) -> None:
        process = data.draw(st.sampled_from(self.processes))
        try:
            views = self.memory.take_all([size] * count)
        except Overloaded:
            return
        stream = process.new_stream()
        try:
            process.client.hold(stream, views)
        except LaneBroken:
            for view in views:
                self.memory.free(view)
            return
        process.room[stream] = [(place, size) for place in self.memory.places(views)]
        self.leases[id(process), stream] = views

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def place(self, data: Any) -> None:
        """Keep the first slot of a writer's room, where it lies; the writer writes to it no more."""
        lease = data.draw(st.sampled_from(list(self.leases)))
        views = self.leases[lease]
        view = views.pop(0)
        kept = self.memory.keep(view)
        self.kept.append((kept, look(kept)))
        (process,) = (process for process in self.processes if id(process) == lease[0])
        assert self.memory.place(kept) == process.room[lease[1]].pop(0)[0]
        if not views:
            del self.leases[lease]

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def end_lease(self, data: Any) -> None:
        """Give a writer up that does not know, and keep others' payloads of the same size."""
        process_id, stream = data.draw(st.sampled_from(list(self.leases)))
        sizes = list(map(len, self.leases[process_id, stream]))
        self.free_room(process_id, stream)
        self.keep(sizes)

    @precondition(lambda self: self.kept and self.processes)
    @rule(data=st.data())
    def read(self, data: Any) -> None:
        process = data.draw(st.sampled_from(self.processes))
        first = data.draw(st.integers(0, len(self.kept) - 1))
        some = self.kept[first : first + 4]
        stream = process.new_stream()
        try:
            process.client.hold(stream, [view for view, _ in some])
        except LaneBroken:
            return
        places = self.memory.places(view for view, _ in some)
        process.reading[stream] = [(place, len(view), was) for place, (view, was) in zip(places, some, strict=True)]

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), count=st.integers(1, 4))
    def evict(self, data: Any, count: int) -> None:
        """Free what some may read, and keep others' payloads of the same size."""
        first = data.draw(st.integers(0, len(self.kept) - 1))
        sizes = [len(view) for view, _ in self.kept[first : first + count]]
        for _ in sizes:
            self.memory.free(self.kept.pop(first)[0])
        self.keep(sizes)

    @precondition(lambda self: any(process.streams() for process in self.processes))
    @rule(data=st.data())
    def let_go(self, data: Any) -> None:
        process = data.draw(st.sampled_from([process for process in self.processes if process.streams()]))
        stream = data.draw(st.sampled_from(process.streams()))
        process.room.pop(stream, None)
        process.reading.pop(stream, None)
        process.end.send(NUMBER.pack(stream))
        self.step(lambda: stream in process.client._gone)
        self.free_room(id(process), stream)

    def free_room(self, process_id: int, stream: int) -> None:
        views = self.leases.pop((process_id, stream), [])
        while views:
            self.memory.free(views.pop())

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def cut(self, data: Any) -> None:
        data.draw(st.sampled_from(self.processes)).client.cut()

    @precondition(lambda self: len(self.processes) > 1)
    @rule(data=st.data())
    def vanish(self, data: Any) -> None:
        self.end_process(data.draw(st.integers(0, len(self.processes) - 1)))

    def end_process(self, index: int) -> None:
        process = self.processes.pop(index)
        process.end_all()
        self.step(process.client.closed.is_set)
        assert process.client.num_held == 0
        for stream in range(process.next_stream):
            self.free_room(id(process), stream)

    @invariant()
    def nothing_that_is_kept_or_read_has_changed(self) -> None:
        for process in self.processes:  # each writes to all that it believes to be its own, lease or not
            for place, size in itertools.chain(*process.room.values()):
                process.mapping[place : place + size] = self.payload(size)
        assert all(look(view) == was for view, was in self.kept)
        for process in self.processes:
            for entries in process.reading.values():
                for place, size, was in entries:
                    assert look(process.mapping[place : place + size]) == was

    @invariant()
    def all_is_counted(self) -> None:
        assert self.memory.num_kept == len(self.kept)
        assert self.memory.num_taken == sum(map(len, self.leases.values()))
        for process in self.processes:
            assert process.client.num_streams == len(process.streams())

    def teardown(self) -> None:
        while self.processes:
            self.end_process(0)
        while self.kept:
            self.memory.free(self.kept.pop()[0])
        assert (self.memory.num_kept, self.memory.num_taken) == (0, 0)
        assert self.memory.take(NUM_SLABS * SLAB_BYTES), "a slot did not come back"
        self.memory.close()
        self.loop.close()


TestZombies = Zombies.TestCase
TestZombies.settings = settings(max_examples=20, stateful_step_count=40)
