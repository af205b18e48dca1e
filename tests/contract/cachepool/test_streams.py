"""Publish, Fetch, Lookup, Snapshot over real gRPC: order, cut-through, leases, drain."""

import asyncio
from collections.abc import Iterable
from contextlib import aclosing

import pytest

from services.cachepool.serving.batch_size import LARGEST_BYTES, SMALLEST_BYTES
from services.cachepool.serving.outlets import MAPPED_BATCH_BYTES
from shared.bus.events import StoredBlocks, stored_from_messages, unpack_keys
from shared.errors import BadRequest, LeaseExpired, Overloaded, WorkerLost
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import seal
from shared.kv.layout import KvLayout, LayerSpec
from shared.lanes.settings import LaneName
from shared.proto import prfaas_pb2 as pb
from shared.rpc.client import Channels, rpc_errors
from tests.support.pools import (
    CHAIN,
    Fetching,
    Running,
    dying_writer,
    entries,
    frames_of,
    opening,
    publish,
    raw_publish,
    sending,
    serving,
    soon,
)
from tests.support.samples import ALL, BLOCK_BYTES, ENTRY_BYTES, LAYOUT, key, keys, wanting
from tests.support.waiting import until


async def test_what_is_published_is_fetched_lowest_layer_first(west: Running) -> None:
    await publish(west, CHAIN)
    fetching = await Fetching(west.client, wanting(CHAIN)).done()
    assert fetching.got == [(name, layer) for layer in range(3) for name in CHAIN]
    assert west.count("entries_published_total") == west.count("stored_entries") == 12
    assert west.count("fetched_entries_total", result="hit") == 12
    assert west.count("fetched_bytes_total") == 12 * ENTRY_BYTES
    assert west.idle


async def test_cut_through(west: Running) -> None:
    """Layer 0 reaches the reader while its writer has still to send the last layer."""
    async with west.client.publish(soon()) as publication:
        await publication.open(LAYOUT, wanting(CHAIN))
        fetching = Fetching(west.client, wanting(CHAIN))
        for layer in range(3):
            await publication.send(frames_of(CHAIN, 1 << layer))
            await fetching.until_got(4 * (layer + 1))
            assert {got_layer for _, got_layer in fetching.got} == set(range(layer + 1))
            assert west.count("writers_open") == 1
    await fetching.done()


async def test_a_fetch_waits_for_a_publish_that_comes_later(west: Running) -> None:
    fetching = Fetching(west.client, wanting(CHAIN))
    await until(lambda: west.count("readers_open") == 1)
    await asyncio.sleep(0.05)
    assert not fetching.task.done()
    await publish(west, CHAIN)
    assert sorted((await fetching.done()).got) == sorted(entries(CHAIN))


async def test_a_reader_that_does_not_wait_is_told_at_once(west: Running) -> None:
    await publish(west, CHAIN[:1])
    fetching = await Fetching(west.client, wanting(CHAIN[:2]), wait_s=0).done()
    assert fetching.got == entries(CHAIN[:1])
    assert fetching.missing == set(entries(CHAIN[1:2]))
    assert west.count("fetched_entries_total", result="miss") == 3


async def test_two_writers_fill_each_entry_once(west: Running) -> None:
    fetching = Fetching(west.client, wanting(CHAIN))
    async with west.client.publish(soon()) as first, west.client.publish(soon()) as second:
        assert (await first.open(LAYOUT, wanting(CHAIN[:3]))).granted == [ALL] * 3
        await first.send(frames_of(CHAIN[:1]))
        await until(lambda: west.count("stored_entries") == 3)
        grant = await second.open(LAYOUT, wanting(CHAIN))
        assert grant.granted == [0, 0, 0, ALL]
        assert grant.present == [ALL, 0, 0, 0]
        await second.send(frames_of(CHAIN[3:]))
        await first.send(frames_of(CHAIN[1:3]))
    assert sorted((await fetching.done()).got) == sorted(entries(CHAIN))
    assert west.count("entries_published_total") == 12
    assert west.count("entries_skipped_total", reason="present") == 3
    assert west.count("entries_skipped_total", reason="filling") == 6


async def test_a_frame_that_was_not_granted_fails_the_stream(west: Running) -> None:
    call = await raw_publish(west, opening(CHAIN[:1]), sending(frames_of(CHAIN[1:2])))
    with rpc_errors("west"):
        assert (await call.read()).HasField("grant")
    with pytest.raises(BadRequest, match="not granted"), rpc_errors("west"):
        await call.read()
    await until(lambda: west.idle)


async def test_a_writer_that_dies_leaves_its_readers_waiting_until_their_time_is_up(west: Running) -> None:
    async with dying_writer(west, num_frames=5):
        fetching = Fetching(west.client, wanting(CHAIN), wait_s=0.3)
        await until(lambda: len(fetching.got) == 5)
        await asyncio.sleep(0.4)
        assert not fetching.task.done(), "the wait does not run while there is a writer"
    await fetching.done()
    assert fetching.missing == set(entries(CHAIN)) - set(fetching.got)
    assert west.count("entries_abandoned_total") == 7
    assert west.count("stored_entries") == 5


async def test_a_next_writer_serves_the_readers_of_a_dead_one(west: Running) -> None:
    async with dying_writer(west, num_frames=5):
        fetching = Fetching(west.client, wanting(CHAIN), wait_s=10)
        await until(lambda: len(fetching.got) == 5)
    await until(lambda: west.count("writers_open") == 0)
    async with west.client.publish(soon()) as publication:
        grant = await publication.open(LAYOUT, wanting(CHAIN))
        assert sum(mask.bit_count() for mask in grant.granted) == 7
        masks = dict(zip(CHAIN, grant.granted, strict=True))
        await publication.send([f for f in frames_of(CHAIN) if masks[f.key] >> f.layer & 1])
    assert sorted((await fetching.done()).got) == sorted(entries(CHAIN))
    assert west.count("entries_published_total") == 12


@pytest.mark.parametrize("lane", ["grpc"], indirect=True)
async def test_a_silent_writer_loses_its_lease(west: Running) -> None:
    call = await raw_publish(west, opening(CHAIN, lease_ms=1000))
    with rpc_errors("west"):
        assert (await call.read()).HasField("grant")
    for _ in range(15):  # alive, with nothing to send
        await asyncio.sleep(0.1)
        await call.write(pb.PublishRequest(renew=pb.PublishRenew()))
    assert west.count("writers_open") == 1
    await until(lambda: west.count("writers_open") == 0)
    with pytest.raises(LeaseExpired), rpc_errors("west"):
        await call.read()
    assert west.idle
    await publish(west, CHAIN)


async def test_lookup_says_which_layers_are_present(west: Running) -> None:
    await publish(west, CHAIN[:1])
    await publish(west, CHAIN[1:2], layers=0b101)
    reply = await west.stub.Lookup(pb.LookupRequest(keys=CHAIN[:3]))
    assert list(zip(reply.present, reply.num_keys, strict=True)) == [(b"\x07", 1), (b"\x05", 1), (b"", 1)]


async def test_lz4_frames_pass_as_they_are(west: Running) -> None:
    sealed = seal(CHAIN[0], 0, bytes(ENTRY_BYTES), Codec.LZ4, LAYOUT.entry_shape(0))
    async with west.client.publish(soon()) as publication:
        await publication.open(LAYOUT, [BlockEntries(CHAIN[0], 1)])
        await publication.send([sealed])
    async with aclosing(west.client.fetch(LAYOUT, [BlockEntries(CHAIN[0], 1)], (), 0, soon())) as arrivals:
        received = [got async for arrived in arrivals for got in arrived.frames]
    assert received == [sealed]


async def test_batches_are_as_large_as_their_lane_bears(west: Running, lane: LaneName) -> None:
    layout = KvLayout((LayerSpec(None, 3, 64),) * 2, "bfloat16")  # 48 KiB an entry
    names = keys("large", 60)
    sent = [seal(name, layer, bytes(layout.entry_bytes(0)), Codec.RAW) for layer in range(2) for name in names]
    async with west.client.publish(soon()) as publication:
        await publication.open(layout, wanting(names, 0b11))
        await publication.send(sent)
    async with aclosing(west.client.fetch(layout, wanting(names, 0b11), (), 0, soon())) as arrivals:
        sizes = [sum(len(got.payload) for got in arrived.frames) async for arrived in arrivals]
    assert sum(sizes) == 120 * 48 * 1024
    limits = {"shared_memory": MAPPED_BATCH_BYTES, "socket": LARGEST_BYTES, "grpc": 1 << 20}
    assert max(sizes) <= limits[lane]
    # Those of a link are as large as it carries in a moment, which a busy machine makes smaller.
    assert len(sizes) <= (sum(sizes) // SMALLEST_BYTES if lane == "socket" else 7)


async def test_a_pool_that_is_held_entirely_refuses_entries_and_goes_on(channels: Channels) -> None:
    async with serving(channels, pool_bytes=2 * BLOCK_BYTES + 100) as west:
        await publish(west, CHAIN[:2])
        holder = Fetching(west.client, [*wanting(CHAIN[:2]), *wanting([key("never")])], wait_s=30)
        await until(lambda: len(holder.got) == 6)
        call = await raw_publish(west, opening(CHAIN[2:]), sending(frames_of(CHAIN[2:])))
        await call.done_writing()
        with rpc_errors("west"):
            assert (await call.read()).HasField("grant")
            assert (await call.read()).stored.num_entries == 0
        assert west.count("entries_refused_total") == 6
        assert west.count("evicted_blocks_total") == 0
        await holder.cancel()
        await until(lambda: west.idle)
        await publish(west, CHAIN[2:])
        assert west.count("evicted_blocks_total") == 2


async def test_streams_are_limited(channels: Channels) -> None:
    async with serving(channels, max_streams=1) as west:
        holder = Fetching(west.client, wanting(CHAIN))
        await until(lambda: west.count("readers_open") == 1)
        with pytest.raises(Overloaded):
            await Fetching(west.client, wanting(CHAIN)).done()
        await holder.cancel()
        await until(lambda: west.idle)
        await Fetching(west.client, wanting(CHAIN), wait_s=0).done()


async def test_a_reader_that_vanishes_frees_its_leases(west: Running) -> None:
    fetching = Fetching(west.client, wanting(CHAIN), wait_s=60)
    await until(lambda: west.count("leases_held") == 4)
    await fetching.cancel()
    await until(lambda: west.idle)


async def test_snapshot_and_events_agree(west: Running, channels: Channels) -> None:
    await publish(west, CHAIN)
    await publish(west, [key("partial")], layers=0b010)
    await until(lambda: sum(event.num_blocks for event in west.events) == 5)
    replies = [reply async for reply in west.stub.Snapshot(pb.SnapshotRequest())]
    known = _by_key(stored for event in west.events for stored in event.stored)
    assert _by_key(stored for reply in replies for stored in stored_from_messages(reply.stored)) == known
    assert known == {**dict.fromkeys(CHAIN, (0b11, 0b11)), key("partial"): (0b10, 0b10)}
    assert {(reply.epoch, reply.sequence) for reply in replies} == {(7, west.events[-1].sequence)}
    assert west.count("placement_sequence") == west.events[-1].sequence
    assert [event.sequence for event in west.events] == list(range(1, len(west.events) + 1))


def _by_key(stored: Iterable[StoredBlocks]) -> dict[bytes, tuple[int, int]]:
    return {name: (s.groups, s.memory_groups) for s in stored for name in unpack_keys(s.keys)}


async def test_an_empty_pool_has_a_snapshot_too(west: Running) -> None:
    await until(lambda: west.events)
    (reply,) = [reply async for reply in west.stub.Snapshot(pb.SnapshotRequest())]
    assert (reply.epoch, reply.sequence, len(reply.stored)) == (7, 1, 0)
    assert west.events[0].cleared


async def test_drain_lets_streams_end_then_cancels_and_says_how_many(channels: Channels) -> None:
    async with serving(channels) as west:
        forever = Fetching(west.client, wanting([key("never")]), wait_s=60)
        ending = Fetching(west.client, wanting([key("neither")]), wait_s=0.2)
        await until(lambda: west.count("readers_open") == 2)
        assert await west.server.stop(0.6) == 1
        assert (await ending.done()).missing == set(entries([key("neither")]))
        with pytest.raises(WorkerLost):
            await forever.done()
        assert west.idle


# Two pools
