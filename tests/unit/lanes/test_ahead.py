"""Memory is touched before it is needed, by a job that ends cleanly."""

import asyncio
import threading

import pytest

from shared.errors import Overloaded
from shared.lanes.ahead import TouchAhead
from shared.lanes.mapping import MemoryRange
from shared.lanes.slabs import SLAB_BYTES
from shared.lanes.slots import SlotMemory
from tests.support.waiting import LIMIT_S, until


async def test_use_is_followed_and_the_end_is_clean() -> None:
    memory = SlotMemory(16 * SLAB_BYTES, shared=True)
    job = asyncio.create_task(TouchAhead(memory, 2 * SLAB_BYTES).run())
    await until(lambda: memory.mapped_bytes == 2 * SLAB_BYTES)
    held = memory.take_all([SLAB_BYTES] * 2)
    await until(lambda: memory.mapped_bytes == 4 * SLAB_BYTES)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    held += memory.take_all([SLAB_BYTES] * 2)
    assert memory.mapped_bytes == 4 * SLAB_BYTES, "somebody still watches"
    memory.close()


async def test_a_job_that_is_cancelled_waits_for_its_thread_and_no_further_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = SlotMemory(16 * SLAB_BYTES, shared=False)
    begun, gate, pieces = threading.Event(), threading.Event(), []

    def touch(_self: MemoryRange, offset: int, _num_bytes: int) -> None:
        begun.set()
        assert gate.wait(LIMIT_S)
        pieces.append(offset)

    monkeypatch.setattr(MemoryRange, "touch", touch)
    job = asyncio.create_task(TouchAhead(memory, 8 * SLAB_BYTES).run())
    assert await asyncio.to_thread(begun.wait, LIMIT_S)
    job.cancel()
    await asyncio.sleep(0)
    assert not job.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert len(pieces) == 1


async def test_a_system_without_memory_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SlotMemory(16 * SLAB_BYTES, shared=False)

    def refuse(*_: object) -> None:
        raise Overloaded("no memory")

    monkeypatch.setattr(MemoryRange, "touch", refuse)
    await TouchAhead(memory, SLAB_BYTES).run()
    assert memory.mapped_bytes == 0
