"""The room of writers on this host: what is counted, what happens where there is none."""

import asyncio
import gc
from array import array
from collections.abc import Sequence

import pytest

from services.cachepool.serving.intakes import MAX_SLOTS, LinkedIntake, MappedIntake, RoomBudget
from shared.errors import BadRequest, CorruptFrame
from shared.kv.frame import Frame, open_frame
from shared.lanes.records import pack_records
from shared.lanes.slabs import SLAB_BYTES, slot_bytes
from shared.lanes.slots import SlotMemory
from shared.lanes.sockets.batch import Received
from shared.proto import prfaas_pb2 as pb
from tests.support.lanes import linked, sealed
from tests.support.samples import ENTRY_BYTES, frame, keys
from tests.support.waiting import LIMIT_S, until


class HoldingClient:
    """An attached process that lets go of nothing."""

    def __init__(self) -> None:
        self.held: list[memoryview] = []

    def hold(self, stream: int, views: Sequence[memoryview]) -> None:
        self.held += views


class Writing:
    """One writer's room in a small memory."""

    def __init__(self, limit_bytes: int = 1 << 20, writer_bytes: int = 1 << 20) -> None:
        self.memory = SlotMemory(SLAB_BYTES, shared=False)
        self.budget = RoomBudget(limit_bytes, writer_bytes)
        self.client = HoldingClient()
        self.intake = self.other()

    def other(self) -> MappedIntake:
        return MappedIntake(self.memory, self.budget, self.client, 1)  # type: ignore[arg-type]

    def ask(self, num_slots: int, num_bytes: int) -> Sequence[int]:
        request = pb.RoomRequest(num_slots=num_slots, slot_bytes=num_bytes)
        return array("Q", self.intake.room(request).places)

    def placed(self, frames: Sequence[Frame], places: Sequence[int]) -> list[Frame]:
        return self.intake.placed(pb.RecordBatch(records=pack_records(frames, places)))


def test_entries_lie_where_the_writer_has_put_them() -> None:
    writing = Writing()
    places = writing.ask(2, ENTRY_BYTES)
    sealed = [frame(key, 0) for key in keys("a", 2)]
    for view, entry in zip(writing.client.held, sealed, strict=True):
        view[:] = entry.payload
    assert writing.placed(sealed, places) == sealed
    with pytest.raises(BadRequest, match="no slot"):
        writing.placed(sealed[:1], places[:1])


def test_an_entry_of_another_size_than_its_slot_is_refused() -> None:
    writing = Writing()
    (place,) = writing.ask(1, ENTRY_BYTES + 1)
    with pytest.raises(BadRequest, match="bytes"):
        writing.placed([frame(keys("a", 1)[0], 0)], [place])
    with pytest.raises(CorruptFrame):
        writing.intake.placed(pb.RecordBatch(records=b"half"))


def test_room_counts_what_slots_take() -> None:
    least = slot_bytes(1)
    writing = Writing(limit_bytes=12 * least, writer_bytes=5 * least)
    assert len(writing.ask(100, 1)) == 5
    assert len(writing.ask(100, 1)) == 0, "the writer has all it may have"
    others = [writing.other() for _ in range(4)]

    def given(number: int) -> int:
        return len(others[number].room(pb.RoomRequest(num_slots=100, slot_bytes=1)).places) // 8

    assert [given(0), given(1)] == [4, 3], "each leaves as much as it has for who comes next"
    assert given(2) == 0, "all writers together have a limit"
    writing.intake.close()
    writing.intake.close()
    assert [given(0), given(1), given(2), given(3)] == [0, 1, 3, 1], "shares are equal"


def test_what_was_placed_counts_no_more() -> None:
    least = slot_bytes(ENTRY_BYTES)
    writing = Writing(writer_bytes=2 * least)
    sealed = [frame(key, 0) for key in keys("a", 2)]
    for _ in range(3):
        places = writing.ask(2, ENTRY_BYTES)
        for view, entry in zip(writing.client.held[-2:], sealed, strict=True):
            view[:] = entry.payload
        assert all(open_frame(got) for got in writing.placed(sealed, places))


def test_one_question_gives_a_bounded_number_of_slots() -> None:
    writing = Writing()
    writing.budget = RoomBudget(1 << 40, 1 << 40)
    writing.intake = writing.other()
    assert len(writing.ask(2 * MAX_SLOTS, 1)) == MAX_SLOTS
    for num_bytes in (0, 1 << 31):
        with pytest.raises(BadRequest, match="slot"):
            writing.ask(1, num_bytes)


def test_where_memory_has_no_slots_there_is_no_room_and_the_budget_is_whole() -> None:
    writing = Writing(limit_bytes=4 * SLAB_BYTES, writer_bytes=4 * SLAB_BYTES)
    assert len(writing.ask(4, SLAB_BYTES // 2)) == 0
    assert writing.memory.num_taken == 0
    assert len(writing.ask(1, SLAB_BYTES // 2)) == 1
    writing.intake.close()
    assert writing.budget.take(writing, 100, SLAB_BYTES) == 2


async def test_what_a_writer_brought_on_a_link_is_let_go_of_when_it_ends() -> None:
    """Without the garbage collector: until it looks, slots that are viewed from a cycle are nobody's."""
    memory = SlotMemory(SLAB_BYTES, shared=False)
    gc.disable()
    try:
        async with linked(far_slots=memory) as ends:  # type: ignore[arg-type]
            intake = LinkedIntake(
                ends.far, 1, lambda received: memory.free_all([f[5] for f in received.frames]), lambda: None
            )
            await ends.near.send(1, [sealed(number, SLAB_BYTES // 4) for number in range(4)])
            async with asyncio.timeout(LIMIT_S):
                await intake.until(4)
            intake.close()
            await until(lambda: memory.has_room([SLAB_BYTES // 4] * 4))  # the thread that received lets go, too
    finally:
        gc.enable()


async def test_what_a_writer_brought_and_must_not_is_let_go_of_and_said() -> None:
    memory, is_failed = SlotMemory(SLAB_BYTES, shared=False), asyncio.Event()

    def refusing(received: Received) -> None:
        raise BadRequest(f"nobody granted {len(received.frames)} entries")

    gc.disable()
    try:
        async with linked(far_slots=memory) as ends:  # type: ignore[arg-type]
            intake = LinkedIntake(ends.far, 1, refusing, is_failed.set)
            await ends.near.send(1, [sealed(number, SLAB_BYTES // 4) for number in range(4)])
            async with asyncio.timeout(LIMIT_S):
                await is_failed.wait()
                with pytest.raises(BadRequest, match="nobody granted 4"):
                    await intake.until(5)
            intake.close()
            await until(lambda: memory.has_room([SLAB_BYTES // 4] * 4))  # the thread that received lets go, too
    finally:
        gc.enable()
