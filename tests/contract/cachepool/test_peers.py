"""Pulls between two pools: shared, cut through, cancelled, damaged."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.cachepool.peers.peers import LOST_PATIENCE_S
from shared.ids import BlockKey, Datacenter
from shared.kv.entries import Source
from shared.kv.layout import iter_layers
from shared.kv.rendezvous import partition
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import CachePoolServicer, add_CachePoolServicer_to_server
from shared.rpc.client import Channels
from shared.rpc.server import GrpcServer
from shared.service.health import Health
from shared.service.lifecycle import InFlight
from tests.support.pools import (
    CHAIN,
    Entry,
    Fetching,
    Running,
    batch_of,
    entries,
    frames_of,
    opening,
    publish,
    raw_publish,
    serving,
    soon,
)
from tests.support.samples import ENTRY_BYTES, LAYOUT, frame, keys, wanting
from tests.support.waiting import LIMIT_S, eventually, until


def source(end: int, *nodes: str) -> Source:
    return Source(0, end, Datacenter(""), nodes)


def everything_from(east: Running) -> list[Source]:
    return [source(len(CHAIN), east.address)]


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
    fetching = Fetching(west.client, wanting(CHAIN), [source(3, east.address)], wait_s=0)
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
    await until(lambda: west.idle and east.idle)
    assert west.count("pulls_total", peer=east.address, outcome="cancelled") == 1
    await publish(west, CHAIN)


async def test_a_second_source_is_asked_for_what_the_first_has_not(
    west: Running, east: Running, channels: Channels
) -> None:
    async with serving(channels) as south:
        await publish(east, CHAIN[:2])
        await publish(south, CHAIN[2:])
        sources = [source(4, "127.0.0.1:1"), source(4, west.address), *everything_from(east)]
        sources.append(source(4, south.address))
        fetching = await Fetching(west.client, wanting(CHAIN), sources, wait_s=0.5).done()
        assert sorted(fetching.got) == sorted(entries(CHAIN))
        assert west.count("pulled_entries_total", peer=east.address) == 6
        assert west.count("pulled_entries_total", peer=south.address) == 6
        assert west.count("pulls_total", peer="127.0.0.1:1", outcome="failed") == 1


@pytest.mark.parametrize("wait_s", [0.2, 120.0])
async def test_an_unreachable_peer_costs_a_short_wait_never_an_error(west: Running, wait_s: float) -> None:
    started = time.monotonic()
    fetching = await Fetching(west.client, wanting(CHAIN), [source(4, "127.0.0.1:1")], wait_s=wait_s).done()
    assert fetching.missing == set(entries(CHAIN))
    assert time.monotonic() - started < LOST_PATIENCE_S + 20
    assert west.idle


async def test_the_wait_at_a_peer_counts_as_a_wait_here(west: Running, east: Running) -> None:
    async def missing_after_s() -> float:
        started = time.monotonic()
        fetching = await Fetching(west.client, wanting(CHAIN), everything_from(east), wait_s=1).done()
        assert fetching.missing == set(entries(CHAIN))
        return time.monotonic() - started

    async def once_for_both_pools() -> bool:  # not once for each, unless something else takes time just then
        return 1 <= await missing_after_s() < 2

    await eventually(once_for_both_pools)


async def test_a_peer_that_dies_leaves_its_entries_to_a_local_writer(
    west: Running, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(channels) as east:
        await publish(east, CHAIN[:2])
        begun = await raw_publish(east, opening(CHAIN[2:]))  # so that the peer has no reason to deny
        await until(lambda: east.count("writers_open") == 1)
        fetching = Fetching(west.client, wanting(CHAIN), everything_from(east), wait_s=1.0)
        await until(lambda: len(fetching.got) == 6)
        await asyncio.sleep(1.1)
        died_at = west.pool.store.clock()
        monkeypatch.setattr(west.pool.store, "clock", lambda: died_at)  # else its wait may be over when we look
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
                sent = sent._replace(payload=bytes(ENTRY_BYTES))
            yield pb.FetchReply(frames=batch_of(sent))

    async def Publish(self, request_iterator: Any, context: Any) -> Any: ...  # type: ignore[override]
    async def Probe(self, request: Any, context: Any) -> Any: ...  # type: ignore[override]
    async def Lookup(self, request: Any, context: Any) -> Any: ...

    async def Lanes(self, request: Any, context: Any) -> pb.LanesReply:
        return pb.LanesReply()

    async def Pin(self, request: Any, context: Any) -> Any: ...
    async def Unpin(self, request: Any, context: Any) -> Any: ...
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
        fetching = await Fetching(west.client, wanting(CHAIN[:2]), [source(2, address)]).done()
        assert sorted(fetching.got) == sorted(entries(CHAIN[:2]))
        assert peer.requests[1:] == [[(CHAIN[0], 1)]]
        assert west.count("corrupt_frames_total", source=address) == 1
        assert west.count("pulled_entries_total", peer=address) == 6
        await until(lambda: west.idle)


async def test_twice_corrupt_is_missing(west: Running) -> None:
    async with lying(num_lies=99) as (peer, address):
        fetching = await Fetching(west.client, wanting(CHAIN[:2]), [source(2, address)], wait_s=0.2).done()
        assert fetching.missing == set(entries(CHAIN[:2], 0b010))
        assert sorted(fetching.got) == sorted(entries(CHAIN[:2], 0b101))
        assert sorted(map(len, peer.requests)) == [1, 1, 6]
        assert west.count("corrupt_frames_total", source=address) == 4
        assert west.count("stored_entries") == 4


async def test_a_peer_that_lies_twice_about_an_entry_is_left_alone(west: Running, east: Running) -> None:
    await publish(east, CHAIN[2:])
    async with lying(num_lies=99) as (peer, address):
        await Fetching(west.client, wanting(CHAIN[:2]), [source(2, address)], wait_s=0.2).done()
        assert west.count("peers_suspected_total", peer=address) == 1
        assert west.pool.pulls.suspects() == (address,)
        num_requests = len(peer.requests)
        sources = [source(2, address), source(2, east.address)]
        fetching = await Fetching(west.client, wanting(CHAIN[2:]), sources, wait_s=0.2).done()
        assert sorted(fetching.got) == sorted(entries(CHAIN[2:])), "the next source is asked in its place"
        assert len(peer.requests) == num_requests


async def test_many_readers_and_writers_at_once_keep_the_books(west: Running, east: Running) -> None:
    """Twenty chains with a common prefix, each wanted by three readers in the west, written in the east meanwhile."""
    prefix = keys("shared", 10)
    chains = [[*prefix, *keys(f"own{n}", 5)] for n in range(20)]
    sources = [source(15, east.address)]

    async def write(chain: list[BlockKey]) -> int:
        async with east.client.publish(soon()) as publication:
            grant = await publication.open(LAYOUT, wanting(chain))
            masks = dict(zip(chain, grant.granted, strict=True))
            mine = [f for f in frames_of(chain) if masks[f.key] >> f.layer & 1]
            await publication.send(mine)
        return len(mine)

    readers = [Fetching(west.client, wanting(chain), sources, wait_s=LIMIT_S) for chain in chains for _ in range(3)]
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


async def test_each_block_is_pulled_from_the_node_that_owns_it(west: Running, east: Running) -> None:
    async with serving(west.client._channels) as second:
        nodes = (east.address, second.address)
        for running in (east, second):
            await publish(running, CHAIN)
        fetching = await Fetching(west.client, wanting(CHAIN), [source(4, *nodes)], wait_s=0).done()
        assert len(fetching.got) == 12
        for address, share in partition(CHAIN, nodes).items():
            assert west.count("pulled_entries_total", peer=address) == 3 * len(share)
        # What its owner does not hold is missing, even where another node has it.
        others = keys("others", 4)
        await publish(east, others)
        fetching = await Fetching(west.client, wanting(others), [source(4, *nodes)], wait_s=0).done()
        owned = [others[block] for block in partition(others, nodes).get(east.address, [])]
        assert sorted(fetching.got) == sorted(entries(owned))
        assert fetching.missing == {entry for entry in entries(others) if entry[0] not in owned}
