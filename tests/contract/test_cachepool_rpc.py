"""The pool over real gRPC on loopback: cut-through, leases, pulls between two pools, damage, snapshot, drain."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from services.cachepool.app import Pool, build_pool
from services.cachepool.settings import PoolSettings
from shared.bus.events import PlacementEvent
from shared.deadline import Deadline
from shared.errors import BadRequest, CorruptFrame, LeaseExpired, Overloaded, WorkerLost
from shared.health import Health
from shared.ids import BlockKey, Epoch
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries, Source
from shared.kv.frame import Frame, open_frame, seal
from shared.kv.layout import KvLayout, LayerSpec, iter_layers
from shared.lifecycle import InFlight
from shared.metrics import Metrics
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import CachePoolServicer, add_CachePoolServicer_to_server
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.convert import add_frames, entries_to_messages, layout_to_message
from shared.rpc.pool import Arrived, PoolClient
from shared.rpc.server import GrpcServer
from tests.unit.cachepool.samples import ALL, BLOCK_BYTES, ENTRY_BYTES, LAYOUT, frame, key, keys, wanting

Entry = tuple[BlockKey, int]
CHAIN = keys("chain", 4)


@dataclass
class Running:
    """A pool that serves on loopback."""

    pool: Pool
    server: GrpcServer
    metrics: Metrics
    events: list[PlacementEvent]
    client: PoolClient

    @property
    def address(self) -> str:
        return self.client.address

    @property
    def stub(self) -> Any:
        return self.client._stub()

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"prfaas:{name}", labels) or 0.0

    @property
    def idle(self) -> bool:
        return all(self.count(name) == 0 for name in ("leases_held", "readers_open", "writers_open"))


@asynccontextmanager
async def serving(channels: Channels, **settings: Any) -> AsyncIterator[Running]:
    metrics, health, inflight = Metrics(), Health("grpc"), InFlight()
    events: list[PlacementEvent] = []
    pool = build_pool(PoolSettings(**settings), Epoch(7), channels, metrics, events.append)
    server = GrpcServer("127.0.0.1", 0, health, inflight)
    add_CachePoolServicer_to_server(pool.servicer, server.grpc)
    pool.pulls.own_address = f"127.0.0.1:{await server.start()}"
    feed = asyncio.create_task(pool.feed.run())
    try:
        yield Running(pool, server, metrics, events, PoolClient(channels, pool.pulls.own_address))
    finally:
        await pool.pulls.close()
        await server.stop(0)
        feed.cancel()
        await asyncio.gather(feed, return_exceptions=True)
        assert inflight.count == 0
        assert pool.store.stats[3:6] == (0, 0, 0), "a lease or a grant outlived its stream"
        pool.store.check_integrity()


@pytest.fixture
async def channels() -> AsyncIterator[Channels]:
    async with Channels() as channels:
        yield channels


@pytest.fixture
async def west(channels: Channels) -> AsyncIterator[Running]:
    async with serving(channels) as running:
        yield running


@pytest.fixture
async def east(channels: Channels) -> AsyncIterator[Running]:
    async with serving(channels) as running:
        yield running


def soon() -> Deadline:
    return Deadline.after(20)


async def until(condition: Callable[[], object], limit_s: float = 10.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - what is waited for is in another task's counters
            await asyncio.sleep(0.005)


def frames_of(block_keys: Iterable[BlockKey], layers: int = ALL) -> list[Frame]:
    block_keys = list(block_keys)
    return [frame(name, layer) for layer in iter_layers(layers) for name in block_keys]


async def publish(running: Running, block_keys: Sequence[BlockKey], layers: int = ALL) -> None:
    async with running.client.publish(soon()) as publication:
        grant = await publication.open(LAYOUT, wanting(block_keys, layers))
        assert grant.granted == [layers] * len(block_keys)
        await publication.send(frames_of(block_keys, layers))


class Fetching:
    """One Fetch stream, read in the background, with what has come so far."""

    def __init__(
        self, client: PoolClient, blocks: Sequence[BlockEntries], sources: Iterable[Source] = (), wait_s: float = 5.0
    ) -> None:
        self.got: list[Entry] = []
        self.missing: set[Entry] = set()
        self.sizes: list[int] = []  # payload bytes of each message
        self._arrivals = client.fetch(LAYOUT, blocks, sources, wait_s, soon())
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with aclosing(self._arrivals) as arrivals:
            async for arrived in arrivals:
                self._add(arrived)

    def _add(self, arrived: Arrived) -> None:
        for received in arrived.frames:
            assert open_frame(received) == frame(received.key, received.layer).payload
            self.got.append((received.key, received.layer))
        self.missing |= {(name, layer) for name, layers in arrived.missing for layer in iter_layers(layers)}
        self.sizes.append(sum(len(received.payload) for received in arrived.frames))

    async def until_got(self, num_entries: int) -> None:
        await until(lambda: len(self.got) == num_entries)

    async def done(self) -> "Fetching":
        await self.task
        assert len(set(self.got)) == len(self.got), "an entry was sent twice"
        assert not self.missing & set(self.got)
        return self

    async def cancel(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def entries(block_keys: Iterable[BlockKey], layers: int = ALL) -> list[Entry]:
    return [(name, layer) for layer in iter_layers(layers) for name in list(block_keys)]


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


@asynccontextmanager
async def dying_writer(running: Running, num_frames: int) -> AsyncIterator[None]:
    """A writer of CHAIN that vanishes after `num_frames` when the context ends."""
    call = await raw_publish(running, opening(CHAIN), sending(frames_of(CHAIN)[:num_frames]))
    yield
    call.cancel()


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


async def raw_publish(running: Running, *messages: pb.PublishRequest) -> Any:
    call = running.stub.Publish()
    for message in messages:
        await call.write(message)
    return call


def opening(block_keys: Sequence[BlockKey], lease_ms: int = 0, layout: KvLayout = LAYOUT) -> pb.PublishRequest:
    blocks = entries_to_messages(wanting(block_keys))
    return pb.PublishRequest(open=pb.PublishOpen(layout=layout_to_message(layout), blocks=blocks, lease_ms=lease_ms))


def batch_of(*frames: Frame) -> pb.FrameBatch:
    batch = pb.FrameBatch()
    add_frames(batch, frames)
    return batch


def sending(frames: Iterable[Frame]) -> pb.PublishRequest:
    return pb.PublishRequest(frames=batch_of(*frames))


async def test_a_silent_writer_loses_its_lease(west: Running) -> None:
    call = await raw_publish(west, opening(CHAIN, lease_ms=150))
    with rpc_errors("west"):
        assert (await call.read()).HasField("grant")
    for _ in range(5):  # alive, with nothing to send
        await asyncio.sleep(0.06)
        await call.write(pb.PublishRequest(renew=pb.PublishRenew()))
    assert west.count("writers_open") == 1
    await until(lambda: west.count("writers_open") == 0, limit_s=3.0)
    with pytest.raises(LeaseExpired), rpc_errors("west"):
        await call.read()
    assert west.idle
    await publish(west, CHAIN)


async def test_a_corrupt_frame_ends_the_writer_and_frees_its_grants(west: Running) -> None:
    fetching = Fetching(west.client, wanting(CHAIN[:1]))
    good, *rest = frames_of(CHAIN[:1])
    bad = replace(rest[0], payload=bytes(ENTRY_BYTES))
    call = await raw_publish(west, opening(CHAIN[:1]), sending([good, bad]))
    with rpc_errors("west"):
        assert (await call.read()).HasField("grant")
    with pytest.raises(CorruptFrame), rpc_errors("west"):
        await call.read()
    await until(lambda: west.count("writers_open") == 0)
    assert west.count("corrupt_frames_total", source="writer") == 1
    assert west.count("stored_entries") == 1
    async with west.client.publish(soon()) as publication:
        assert (await publication.open(LAYOUT, wanting(CHAIN[:1]))).granted == [0b110]
        await publication.send(rest)
    assert (await fetching.done()).got == entries(CHAIN[:1])


@pytest.mark.parametrize(
    "damage",
    [{"codec": 9}, {"fidelity": 0}, {"layer": 1 << 31}, {"key": b"short"}, {"raw_bytes": 0}, {"checksum": 1}],
    ids=lambda damage: next(iter(damage)),
)
async def test_a_frame_that_cannot_be_one_is_corrupt(west: Running, damage: dict[str, Any]) -> None:
    message = batch_of(frame(CHAIN[0], 0)).frames[0]
    for name, value in damage.items():
        setattr(message, name, value)
    call = await raw_publish(west, opening(CHAIN[:1]), pb.PublishRequest(frames=pb.FrameBatch(frames=[message])))
    with rpc_errors("west"):
        assert (await call.read()).HasField("grant")
    with pytest.raises(CorruptFrame), rpc_errors("west"):
        await call.read()
    assert west.count("corrupt_frames_total", source="writer") == 1
    assert west.idle


BAD_LAYOUTS = [
    pb.Layout(),
    pb.Layout(layers=[pb.Layer(num_kv_heads=1, head_dim=4)], dtype="int3", block_tokens=4),
    pb.Layout(layers=[pb.Layer(num_kv_heads=1, head_dim=4)], dtype="bfloat16", block_tokens=0),
    pb.Layout(layers=[pb.Layer(num_kv_heads=0, head_dim=4)], dtype="bfloat16", block_tokens=4),
]
GOOD_LAYOUT = layout_to_message(LAYOUT)
BAD_BLOCKS = [
    [pb.BlockEntries(key=b"x" * 31, layers=b"\x01")],
    [pb.BlockEntries(key=b"x" * 32, layers=b"\x08")],
    [pb.BlockEntries(key=b"x" * 32, layers=b"\x01" * 65)],
    [pb.BlockEntries(key=b"x" * 32, layers=b"\x01")] * 2,
    [pb.BlockEntries(key=key(n), layers=b"\x01") for n in range(11)],
]
BAD_REQUESTS: list[tuple[pb.Layout, list[pb.BlockEntries]]] = [(layout, []) for layout in BAD_LAYOUTS] + [
    (GOOD_LAYOUT, blocks) for blocks in BAD_BLOCKS
]


@pytest.mark.parametrize(("layout", "blocks"), BAD_REQUESTS)
async def test_bad_requests_are_refused_and_leave_nothing(
    channels: Channels, layout: pb.Layout, blocks: list[pb.BlockEntries]
) -> None:
    async with serving(channels, max_blocks=10) as west:
        with pytest.raises(BadRequest), rpc_errors("west"):
            await west.stub.Fetch(pb.FetchRequest(layout=layout, blocks=blocks)).read()
        call = await raw_publish(west, pb.PublishRequest(open=pb.PublishOpen(layout=layout, blocks=blocks)))
        with pytest.raises(BadRequest), rpc_errors("west"):
            await call.read()
        await publish(west, CHAIN)


async def test_other_bad_messages_are_refused(west: Running) -> None:
    blocks = entries_to_messages(wanting(CHAIN))
    for source in (
        pb.Source(first=0, end=5, address="127.0.0.1:1"),
        pb.Source(first=2, end=2, address="127.0.0.1:1"),
        pb.Source(first=0, end=1),
    ):
        request = pb.FetchRequest(layout=GOOD_LAYOUT, blocks=blocks, sources=[source])
        with pytest.raises(BadRequest), rpc_errors("west"):
            await west.stub.Fetch(request).read()
    call = await raw_publish(west, pb.PublishRequest())
    with pytest.raises(BadRequest), rpc_errors("west"):
        await call.read()
    with pytest.raises(BadRequest), rpc_errors("west"):
        await west.stub.Lookup(pb.LookupRequest(keys=[b"short"]))
    await publish(west, CHAIN)
    other = KvLayout((LayerSpec(None, 1, 8),), "float32", block_tokens=4)
    call = await raw_publish(west, opening(CHAIN, layout=other))
    with pytest.raises(BadRequest), rpc_errors("west"):
        await call.read()


async def test_lookup_says_which_layers_are_present(west: Running) -> None:
    await publish(west, CHAIN[:1])
    await publish(west, CHAIN[1:2], layers=0b101)
    reply = await west.stub.Lookup(pb.LookupRequest(keys=CHAIN[:3]))
    assert list(reply.present) == [b"\x07", b"\x05", b""]


async def test_lz4_frames_pass_as_they_are(west: Running) -> None:
    sealed = seal(CHAIN[0], 0, bytes(ENTRY_BYTES), Codec.LZ4)
    async with west.client.publish(soon()) as publication:
        await publication.open(LAYOUT, [BlockEntries(CHAIN[0], 1)])
        await publication.send([sealed])
    async with aclosing(west.client.fetch(LAYOUT, [BlockEntries(CHAIN[0], 1)], (), 0, soon())) as arrivals:
        received = [got async for arrived in arrivals for got in arrived.frames]
    assert received == [sealed]


async def test_batches_stay_near_one_mebibyte(west: Running) -> None:
    layout = KvLayout((LayerSpec(None, 3, 64),) * 2, "bfloat16")  # 48 KiB an entry
    names = keys("large", 60)
    sent = [seal(name, layer, bytes(layout.entry_bytes(0)), Codec.RAW) for layer in range(2) for name in names]
    async with west.client.publish(soon()) as publication:
        await publication.open(layout, wanting(names, 0b11))
        await publication.send(sent)
    async with aclosing(west.client.fetch(layout, wanting(names, 0b11), (), 0, soon())) as arrivals:
        sizes = [sum(len(got.payload) for got in arrived.frames) async for arrived in arrivals]
    assert sum(sizes) == 120 * 48 * 1024
    assert max(sizes) <= 1 << 20
    assert len(sizes) <= 7


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
    await until(lambda: west.idle, limit_s=1.0)


async def test_snapshot_and_events_agree(west: Running, channels: Channels) -> None:
    await publish(west, CHAIN)
    await publish(west, [key("partial")], layers=0b010)
    await until(lambda: sum(len(event.stored) for event in west.events) == 5)
    replies = [reply async for reply in west.stub.Snapshot(pb.SnapshotRequest())]
    known: dict[bytes, int] = {}
    for event in west.events:
        known.update(event.stored)
    assert {block.key: block.groups for reply in replies for block in reply.stored} == known
    assert known == {**dict.fromkeys(CHAIN, 0b11), key("partial"): 0b10}
    assert {(reply.epoch, reply.sequence) for reply in replies} == {(7, west.events[-1].sequence)}
    assert west.count("placement_sequence") == west.events[-1].sequence
    assert [event.sequence for event in west.events] == list(range(1, len(west.events) + 1))


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


def everything_from(east: Running) -> list[Source]:
    return [Source(0, len(CHAIN), east.address)]


async def test_a_pull_is_shared_and_each_entry_crosses_once(west: Running, east: Running) -> None:
    await publish(east, CHAIN)
    readers = [Fetching(west.client, wanting(CHAIN), everything_from(east)) for _ in range(2)]
    for reader in readers:
        assert sorted((await reader.done()).got) == sorted(entries(CHAIN))
    third = await Fetching(west.client, wanting(CHAIN), everything_from(east)).done()
    assert len(third.got) == 12
    assert west.count("pulled_entries_total", peer=east.address) == 12
    assert west.count("pulled_bytes_total", peer=east.address) == 12 * ENTRY_BYTES
    assert west.count("pulls_total", peer=east.address, outcome="finished") == 1
    assert west.count("entries_published_total") == 0
    assert west.count("stored_entries") == 12
    assert east.count("fetched_entries_total", result="hit") == 12
    await until(lambda: west.idle and east.idle)


async def test_cut_through_reaches_across_two_pools(west: Running, east: Running) -> None:
    fetching = Fetching(west.client, wanting(CHAIN), everything_from(east))  # before there is any writer
    await until(lambda: east.count("readers_open") == 1)
    async with east.client.publish(soon()) as publication:
        await publication.open(LAYOUT, wanting(CHAIN))
        for layer in range(3):
            await publication.send(frames_of(CHAIN, 1 << layer))
            await fetching.until_got(4 * (layer + 1))
            assert east.count("writers_open") == 1
    await fetching.done()


async def test_only_what_is_absent_is_pulled_and_only_within_the_sources_range(west: Running, east: Running) -> None:
    await publish(east, CHAIN)
    await publish(west, CHAIN[:1])
    fetching = Fetching(west.client, wanting(CHAIN), [Source(0, 3, east.address)], wait_s=0)
    await fetching.done()
    assert sorted(fetching.got) == sorted(entries(CHAIN[:3]))
    assert fetching.missing == set(entries(CHAIN[3:]))
    assert west.count("pulled_entries_total", peer=east.address) == 6


async def test_the_last_readers_cancel_cancels_the_pull(west: Running, east: Running) -> None:
    readers = [Fetching(west.client, wanting(CHAIN), everything_from(east), wait_s=60) for _ in range(2)]
    await until(lambda: east.count("leases_held") == 4 and west.count("leases_held") == 8)
    await readers[0].cancel()
    await until(lambda: west.count("leases_held") == 4)
    assert east.count("leases_held") == 4, "one reader still waits"
    await readers[1].cancel()
    await until(lambda: west.idle and east.idle, limit_s=1.0)
    assert west.count("pulls_total", peer=east.address, outcome="cancelled") == 1
    await publish(west, CHAIN)


async def test_a_second_source_is_asked_for_what_the_first_has_not(
    west: Running, east: Running, channels: Channels
) -> None:
    async with serving(channels) as south:
        await publish(east, CHAIN[:2])
        await publish(south, CHAIN[2:])
        sources = [Source(0, 4, "127.0.0.1:1"), Source(0, 4, west.address), *everything_from(east)]
        sources.append(Source(0, 4, south.address))
        fetching = await Fetching(west.client, wanting(CHAIN), sources, wait_s=0.5).done()
        assert sorted(fetching.got) == sorted(entries(CHAIN))
        assert west.count("pulled_entries_total", peer=east.address) == 6
        assert west.count("pulled_entries_total", peer=south.address) == 6
        assert west.count("pulls_total", peer="127.0.0.1:1", outcome="failed") == 1


async def test_an_unreachable_peer_costs_a_wait_never_an_error(west: Running) -> None:
    fetching = await Fetching(west.client, wanting(CHAIN), [Source(0, 4, "127.0.0.1:1")], wait_s=0.2).done()
    assert fetching.missing == set(entries(CHAIN))
    assert west.idle


async def test_the_wait_at_a_peer_counts_as_a_wait_here(west: Running, east: Running) -> None:
    started = time.monotonic()
    fetching = await Fetching(west.client, wanting(CHAIN), everything_from(east), wait_s=0.8).done()
    assert fetching.missing == set(entries(CHAIN))
    assert 0.8 <= time.monotonic() - started < 1.5, "once for both pools, not once for each"


async def test_a_peer_that_dies_leaves_its_entries_to_a_local_writer(west: Running, channels: Channels) -> None:
    async with serving(channels) as east:
        await publish(east, CHAIN[:2])
        begun = await raw_publish(east, opening(CHAIN[2:]))  # so that the peer has no reason to deny
        fetching = Fetching(west.client, wanting(CHAIN), everything_from(east), wait_s=1.0)
        await until(lambda: len(fetching.got) == 6)
        await asyncio.sleep(1.1)
        await east.server.stop(0)
        begun.cancel()
    await until(lambda: west.count("writers_open") == 0)
    assert not fetching.task.done(), "the wait for a next writer begins when the last one dies"
    await publish(west, CHAIN[2:])
    assert sorted((await fetching.done()).got) == sorted(entries(CHAIN))


class LyingPeer(CachePoolServicer):
    """A pool whose memory flips bits: the first `num_lies` times it sends layer 1 of a block, the payload is wrong."""

    def __init__(self, num_lies: int) -> None:
        self.num_lies = num_lies
        self.requests: list[list[Entry]] = []

    async def Fetch(self, request: pb.FetchRequest, context: Any) -> AsyncIterator[pb.FetchReply]:
        asked = [(BlockKey(b.key), layer) for b in request.blocks for layer in iter_layers(b.layers[0])]
        self.requests.append(asked)
        for name, layer in asked:
            sent = frame(name, layer)
            if layer == 1 and self.num_lies > 0:
                self.num_lies -= 1
                sent = replace(sent, payload=bytes(ENTRY_BYTES))
            yield pb.FetchReply(frames=batch_of(sent))

    async def Publish(self, request_iterator: Any, context: Any) -> Any: ...  # type: ignore[override]
    async def Lookup(self, request: Any, context: Any) -> Any: ...
    async def Snapshot(self, request: Any, context: Any) -> Any: ...  # type: ignore[override]


@asynccontextmanager
async def lying(num_lies: int) -> AsyncIterator[tuple[LyingPeer, str]]:
    peer = LyingPeer(num_lies)
    server = GrpcServer("127.0.0.1", 0, Health(), InFlight())
    add_CachePoolServicer_to_server(peer, server.grpc)
    port = await server.start()
    try:
        yield peer, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def test_a_corrupt_frame_from_a_peer_is_fetched_again_alone(west: Running) -> None:
    async with lying(num_lies=1) as (peer, address):
        fetching = await Fetching(west.client, wanting(CHAIN[:2]), [Source(0, 2, address)]).done()
        assert sorted(fetching.got) == sorted(entries(CHAIN[:2]))
        assert peer.requests[1:] == [[(CHAIN[0], 1)]]
        assert west.count("corrupt_frames_total", source=address) == 1
        assert west.count("pulled_entries_total", peer=address) == 6
        await until(lambda: west.idle)


async def test_twice_corrupt_is_missing(west: Running) -> None:
    async with lying(num_lies=99) as (peer, address):
        fetching = await Fetching(west.client, wanting(CHAIN[:2]), [Source(0, 2, address)], wait_s=0.2).done()
        assert fetching.missing == set(entries(CHAIN[:2], 0b010))
        assert sorted(fetching.got) == sorted(entries(CHAIN[:2], 0b101))
        assert sorted(map(len, peer.requests)) == [1, 1, 6]
        assert west.count("corrupt_frames_total", source=address) == 4
        assert west.count("stored_entries") == 4


async def test_many_readers_and_writers_at_once_keep_the_books(west: Running, east: Running) -> None:
    """Twenty chains with a common prefix, each wanted by three readers in the west, written in the east meanwhile."""
    prefix = keys("shared", 10)
    chains = [[*prefix, *keys(f"own{n}", 5)] for n in range(20)]
    sources = [Source(0, 15, east.address)]

    async def write(chain: list[BlockKey]) -> int:
        async with east.client.publish(soon()) as publication:
            grant = await publication.open(LAYOUT, wanting(chain))
            masks = dict(zip(chain, grant.granted, strict=True))
            mine = [f for f in frames_of(chain) if masks[f.key] >> f.layer & 1]
            await publication.send(mine)
        return len(mine)

    readers = [Fetching(west.client, wanting(chain), sources, wait_s=10) for chain in chains for _ in range(3)]
    written = await asyncio.gather(*(write(chain) for chain in chains))
    for reader in readers:
        assert len((await reader.done()).got) == 45
    num_distinct = 3 * (10 + 20 * 5)
    assert sum(written) == num_distinct == east.count("entries_published_total")
    assert west.count("pulled_entries_total", peer=east.address) == num_distinct
    assert east.count("stored_entries") == west.count("stored_entries") == num_distinct
    assert east.count("fetched_entries_total", result="hit") == num_distinct, "nothing crossed twice"
    assert west.count("fetched_entries_total", result="hit") == 60 * 45
    await until(lambda: west.idle and east.idle)
