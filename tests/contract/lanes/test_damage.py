"""Entries that change in the pool's memory, and writers that name places which are not theirs: on each lane."""

import asyncio
from array import array
from typing import Any

import pytest

from services.cachepool.serving import ends, outlets
from services.cachepool.serving.servicer import PoolServicer
from shared.errors import BadRequest, CorruptFrame, Internal, WorkerLost
from shared.kv.frame import Frame
from shared.lanes.records import pack_records
from shared.lanes.settings import LaneName
from shared.lanes.shared_memory.attachment import Attachment
from shared.lanes.slots import SlotMemory
from shared.pool.client import PoolClient
from shared.pool.lanes.chosen import PoolLanes
from shared.proto import prfaas_pb2 as pb
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.convert import MAX_BATCH_BYTES, entries_to_messages, layout_to_message
from tests.support.large import LARGE, LARGE_BYTES, LONG, Reading, large_entries, large_frames, write_all
from tests.support.ledger import Ledger, held
from tests.support.pools import Running, raw_publish, serving, soon
from tests.support.samples import frame, key, keys, wanting
from tests.support.waiting import LIMIT_S, until

MAPPED = pytest.mark.parametrize("lane", ["shared_memory"], indirect=True)


def flip(running: Running, name: Any, layer: int) -> None:
    """Change a byte of a stored entry behind the pool's back, as a writer of shared memory can."""
    (stored,) = running.pool.store.frames(wanting([name], 1 << layer)[0])
    assert isinstance(stored.payload, memoryview)
    stored.payload.obj[0] ^= 1  # type: ignore[index]


async def test_a_reader_notices_and_its_doubt_makes_the_pool_forget(west: Running, lane: LaneName) -> None:
    await write_all(west.client, LONG)
    ledger = await Ledger.of(west)
    flip(west, LONG[3], 1)
    with pytest.raises(CorruptFrame):
        await Reading(west.client, LONG).run()
    reading = await Reading(west.client, LONG).run(doubted=True)
    assert reading.missing == {(LONG[3], 1)}
    assert set(reading.got) == large_entries(LONG) - reading.missing
    assert west.count("corrupt_frames_total", source="memory") == 1
    async with west.client.publish(soon()) as publication:
        grant = await publication.open(LARGE, wanting(LONG, LARGE.all_layers))
        assert sum(mask.bit_count() for mask in grant.granted) == 1
        await publication.send([frame(LONG[3], 1, LARGE)])
    assert (await Reading(west.client, LONG).run()).has_all
    await ledger.balanced()


async def test_who_waits_for_an_entry_that_is_forgotten_waits_for_the_next_writer(
    west: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry was ready for the other reader, and had not been sent to it yet."""
    await write_all(west.client, LONG)
    ledger = await Ledger.of(west)
    gate, send = asyncio.Event(), PoolServicer._send
    has_begun = asyncio.Event()

    async def slowly(self: PoolServicer, frames: list[Frame], outlet: outlets.Outlet) -> None:
        if not has_begun.is_set():
            has_begun.set()
            await gate.wait()
        await send(self, frames, outlet)

    monkeypatch.setattr(outlets, "MAPPED_BATCH_BYTES", MAX_BATCH_BYTES)
    monkeypatch.setattr(PoolServicer, "_send", slowly)
    other = asyncio.create_task(Reading(west.client, LONG, wait_s=LIMIT_S).run())
    await has_begun.wait()
    flip(west, LONG[7], 1)
    assert (await Reading(west.client, [LONG[7]]).run(doubted=True)).missing == {(LONG[7], 1)}
    gate.set()
    await until(lambda: west.count("fetched_entries_total", result="hit") == 2 * len(LONG))  # one was the doubter's
    assert not other.done()
    await write_all(west.client, [LONG[7]], 0b10)
    assert (await other).has_all
    await ledger.balanced()


@pytest.mark.parametrize("lane", ["socket", "grpc"], indirect=True)
async def test_a_writer_of_what_is_corrupt_loses_its_grants_at_once(west: Running) -> None:
    """Not when it has sent everything: others may write what it held."""
    ledger = await Ledger.of(west)
    good, bad = large_frames(LONG[:1])

    async def write() -> None:
        async with west.client.publish(soon()) as publication:
            await publication.open(LARGE, wanting(LONG[:3], LARGE.all_layers))
            await publication.send([good, bad._replace(payload=bytes(LARGE_BYTES))])
            await until(lambda: west.count("writers_open") == 0)

    # What it is told depends on whether it asks or says something, and gRPC on whether the end was heard of before.
    with pytest.raises((CorruptFrame, WorkerLost, Internal)):
        await write()
    assert west.count("stored_entries") == 1
    assert west.count("corrupt_frames_total", source="writer") == 1
    await write_all(west.client, LONG[1:3])
    await ledger.balanced()


async def attached(running: Running) -> Attachment:
    reply = await running.stub.Lanes(pb.LanesRequest())
    return await Attachment.attach(reply.shared_memory, LIMIT_S)


async def room_of(
    running: Running, attachment: Attachment, block_keys: list[Any], slot_bytes: int = LARGE_BYTES
) -> tuple[Any, list[int]]:
    """Open a raw publication with room for one layer of blocks; returns the call and the places."""
    use = pb.LaneUse(kind=pb.LANE_KIND_SHARED_MEMORY, attachment=attachment.number, stream=attachment.new_stream())
    blocks = entries_to_messages(wanting(block_keys, LARGE.all_layers))
    message = pb.PublishRequest(open=pb.PublishOpen(layout=layout_to_message(LARGE), blocks=blocks, lane=use))
    room = pb.PublishRequest(room=pb.RoomRequest(num_slots=len(block_keys), slot_bytes=slot_bytes))
    call = await raw_publish(running, message, room)
    with rpc_errors("west"):
        assert (await call.read()).HasField("grant")
        return call, list(array("Q", (await call.read()).room.places))


def placing(frames: list[Frame], places: list[int]) -> pb.PublishRequest:
    return pb.PublishRequest(placed=pb.RecordBatch(records=pack_records(frames, places)))


@MAPPED
@pytest.mark.parametrize("where", ["another's", "used", "within", "next", "outside", "too small", "not granted"])
async def test_a_place_that_is_not_the_writer_s_is_refused(west: Running, where: str) -> None:
    ledger = await Ledger.of(west)
    attachment = await attached(west)
    mine, others = keys("mine", 2), keys("others", 2)
    call, places = await room_of(west, attachment, mine)
    other, others_places = await room_of(west, attachment, others)
    assert not set(places) & set(others_places)
    entry = large_frames(mine, 1)[0]
    named = {
        "another's": (entry, others_places[0]),
        "used": (large_frames(mine, 1)[1], places[0]),
        "within": (entry, places[0] + 64),
        "next": (entry, max(places + others_places) + LARGE_BYTES),
        "outside": (entry, attachment.size_bytes),
        "too small": (entry._replace(payload=memoryview(entry.payload)[:-1]), places[0]),
        "not granted": (large_frames(others, 1)[0], places[0]),
    }[where]
    num_stored = 0
    if where == "used":
        attachment.slot(places[0], LARGE_BYTES)[:] = entry.payload
        await call.write(placing([entry], [places[0]]))
        num_stored = 1
    await call.write(placing([named[0]], [named[1]]))
    with pytest.raises(BadRequest), rpc_errors("west"):
        await call.read()
    await until(lambda: west.count("writers_open") == 1)
    assert west.count("stored_entries") == num_stored
    other_entry = large_frames(others, 1)[0]
    attachment.slot(others_places[0], LARGE_BYTES)[:] = other_entry.payload
    await other.write(placing([other_entry], [others_places[0]]))
    await other.done_writing()
    with rpc_errors("west"):
        assert (await other.read()).stored.num_entries == 1
    await attachment.close()
    await ledger.balanced()
    reading = await Reading(west.client, [*mine, *others]).run()
    assert set(reading.got) == {(others[0], 0)} | ({(mine[0], 0)} if num_stored else set())


@MAPPED
async def test_room_of_tiny_slots_takes_no_more_than_its_share(west: Running) -> None:
    ledger = await Ledger.of(west)
    attachment = await attached(west)
    call, places = await room_of(west, attachment, keys("tiny", 1), slot_bytes=1)
    await call.write(pb.PublishRequest(room=pb.RoomRequest(num_slots=(1 << 32) - 1, slot_bytes=1)))
    more = array("Q", (await call.read()).room.places)
    assert held(west).room_bytes <= (64 << 20) // 8
    assert 0 < (len(places) + len(more)) * 256 <= (64 << 20) // 8
    call.cancel()
    await attachment.close()
    await ledger.balanced()


@MAPPED
async def test_without_memory_for_room_entries_go_in_messages(
    lane: LaneName, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "limit_for", lambda _budget: 24 << 20)
    async with serving(channels, pool_bytes=512 << 20) as west:
        await write_all(west.client, keys("first", 1))
        names = keys("many", 400)
        ledger = await Ledger.of(west)
        num_placed = await write_all(west.client, names)  # 37 MiB; room is 64 MiB at most
        assert num_placed < 2 * len(names)
        reading = await Reading(west.client, names).run()
        assert reading.got
        assert west.count("entries_published_total") > num_placed
        await ledger.balanced()


async def test_a_pool_whose_memory_is_all_held_refuses_and_goes_on(
    lane: LaneName, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers hold every slot, so nothing can be evicted and nothing be taken."""
    monkeypatch.setattr(ends, "limit_for", lambda _budget: 10 << 20)
    async with serving(channels, pool_bytes=512 << 20) as west:
        await write_all(west.client, LONG)
        ledger = await Ledger.of(west)
        has_come, stop = asyncio.Event(), asyncio.Event()

        async def then(_frames: list[Frame]) -> None:
            has_come.set()
            await stop.wait()

        reading = asyncio.create_task(Reading(west.client, [*LONG, key("never")], wait_s=1.0).run(then))
        await has_come.wait()
        names = keys("many", 200)
        by_message = PoolClient(channels, west.address)
        await write_all(by_message, names)  # 19 MiB
        assert west.count("entries_refused_total") > 0
        stop.set()
        assert large_entries(LONG) <= set((await reading).got)
        await write_all(by_message, keys("later", 20))
        assert (await Reading(west.client, keys("later", 20)).run()).has_all
        await ledger.balanced()


@pytest.mark.parametrize("lane", ["socket"], indirect=True)
async def test_a_reader_that_has_no_memory_gets_the_rest_in_messages(west: Running, channels: Channels) -> None:
    await write_all(west.client, LONG)
    ledger = await Ledger.of(west)
    memory = SlotMemory(1 << 20, shared=False)
    taken = memory.take_all([LARGE_BYTES] * 15)  # nearly all of it, by others
    lanes = PoolLanes(channels, ("socket", "grpc"), memory)
    reading = await Reading(PoolClient(channels, west.address, lanes=lanes), LONG).run()
    assert reading.has_all
    assert west.count("lane_sent_bytes_total", lane="grpc") > 0
    del taken
    await lanes.close()
    await ledger.balanced()
