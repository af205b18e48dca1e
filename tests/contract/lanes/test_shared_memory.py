"""Shared memory between real processes: what each may do to the other by dying, standing still or lying."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from shared.errors import LaneBroken
from shared.lanes.shared_memory.attachment import Attachment
from shared.lanes.shared_memory.client import AttachedClient
from shared.lanes.shared_memory.door import MemoryDoor
from shared.lanes.slabs import SLAB_BYTES
from shared.lanes.slots import SlotMemory
from shared.proto import prfaas_pb2 as pb
from tests.support.shared_memory import LaneProcess
from tests.support.waiting import LIMIT_S, until

pytestmark = pytest.mark.suite


@pytest.fixture
def memory() -> Iterator[SlotMemory]:
    memory = SlotMemory(4 * SLAB_BYTES, shared=True)
    yield memory
    memory.close()


@pytest.fixture
async def door(memory: SlotMemory, folder: Path) -> AsyncIterator[MemoryDoor]:
    door = MemoryDoor(memory, folder)
    await door.start()
    yield door
    await door.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="prfaas-") as folder:
        yield Path(folder) / "lanes"


@pytest.fixture
async def processes() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def client_of(door: MemoryDoor, processes: AsyncExitStack) -> tuple[LaneProcess, AttachedClient]:
    process = await LaneProcess.client(door.offer)
    processes.push_async_callback(process.kill)
    client = door.attachment(int(process.first))
    assert client is not None
    return process, client


async def pool_of(folder: Path, processes: AsyncExitStack) -> tuple[LaneProcess, pb.SharedMemoryOffer, int]:
    process = await LaneProcess.start("pool", str(folder))
    processes.push_async_callback(process.kill)
    path, token, place = process.first.split()
    return process, pb.SharedMemoryOffer(path=path, token=bytes.fromhex(token)), int(place)


async def test_both_see_the_same_bytes_until_the_stream_is_let_go(
    door: MemoryDoor, memory: SlotMemory, processes: AsyncExitStack
) -> None:
    process, client = await client_of(door, processes)
    kept, room = memory.keep(b"payload" * 100), memory.take(49152)
    client.hold(1, [kept, room])
    assert await process.tell("read", memory.place(kept), 700) == kept.hex()
    await process.tell("write", memory.place(room), 49152, 7)
    placed = memory.keep(room)
    assert placed == b"\x07" * 49152
    await process.tell("let_go", 1)
    await until(lambda: client.num_held == 0)
    assert not client.closed.is_set()


async def test_a_process_that_is_killed_holds_nothing(
    door: MemoryDoor, memory: SlotMemory, processes: AsyncExitStack
) -> None:
    process, client = await client_of(door, processes)
    client.hold(1, [memory.keep(b"x" * 1000)])
    await process.kill()
    await asyncio.wait_for(client.closed.wait(), LIMIT_S)
    assert (client.num_held, door.num_clients) == (0, 0)


async def test_a_process_that_stands_still_keeps_what_it_holds_and_may_write_to_it_later(
    door: MemoryDoor, memory: SlotMemory, processes: AsyncExitStack
) -> None:
    process, client = await client_of(door, processes)
    room = memory.take(SLAB_BYTES)
    place = memory.place(room)
    client.hold(1, [room])
    process.process.send_signal(signal.SIGSTOP)
    memory.free(room)  # the lease is over
    del room
    writing = asyncio.create_task(process.tell("write", place, SLAB_BYTES, 9))
    others = [memory.keep(bytes(SLAB_BYTES)) for _ in range(3)]
    with pytest.raises(Exception, match="still read"):
        memory.take(SLAB_BYTES)
    client.cut()  # nor does it help to want no more of it
    assert client.num_held == 1
    process.process.send_signal(signal.SIGCONT)
    assert await writing == "written"
    assert all(other == bytes(SLAB_BYTES) for other in others), "a zombie wrote into what was kept"
    await process.tell("let_go", 1)
    await until(lambda: client.num_held == 0)
    assert memory.place(memory.take(SLAB_BYTES)) == place


async def test_a_pool_that_is_killed_leaves_readable_views_and_its_socket_to_the_next(
    folder: Path, processes: AsyncExitStack
) -> None:
    process, offer, place = await pool_of(folder, processes)
    attachment = await Attachment.attach(offer, LIMIT_S)
    view = attachment.view(place, 700)
    attachment.let_go(attachment.new_stream())
    await process.kill()
    await asyncio.wait_for(attachment.ended.wait(), LIMIT_S)
    assert attachment.broken
    assert view == b"payload" * 100
    attachment.let_go(attachment.new_stream())
    del view
    await attachment.close()
    with pytest.raises(LaneBroken, match="refused"):
        await Attachment.attach(offer, LIMIT_S)
    assert os.listdir(folder) == [os.path.basename(offer.path)]

    _, second, _ = await pool_of(folder, processes)
    assert os.listdir(folder) == [os.path.basename(second.path)]
    assert second.path != offer.path
    again = await Attachment.attach(second, LIMIT_S)
    await again.close()


async def test_two_pools_share_a_folder(folder: Path, processes: AsyncExitStack) -> None:
    offers = [(await pool_of(folder, processes))[1] for _ in range(2)]
    for offer in offers:
        attachment = await Attachment.attach(offer, LIMIT_S)
        await attachment.close()


async def test_another_pool_s_token_opens_nothing(door: MemoryDoor, folder: Path, processes: AsyncExitStack) -> None:
    _, other, _ = await pool_of(folder, processes)
    with pytest.raises(LaneBroken, match="refused"):
        await Attachment.attach(pb.SharedMemoryOffer(path=other.path, token=door.offer.token), LIMIT_S)
