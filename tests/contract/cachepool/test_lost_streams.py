"""Pulls whose connections break, whose peer dies or hangs: what was lost is asked for again, and nothing twice."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, suppress

import pytest

from benchmarks.pipe.node import LAYOUT as PIPE
from benchmarks.pipe.node import chain as pipe_chain
from benchmarks.pipe.node import pool_node
from benchmarks.pool_process import PoolProcess
from services.cachepool.links import links
from shared.ids import Datacenter
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries, Source
from shared.kv.frame import open_frame, seal
from shared.kv.layout import KvLayout, LayerSpec, iter_layers
from shared.pool.client import Crossing
from shared.rpc.client import Channels
from tests.support.pools import CHAIN, Entry, Fetching, Running, entries, publish, serving, soon
from tests.support.proxy import Proxy, proxied
from tests.support.samples import keys, wanting
from tests.support.waiting import LIMIT_S, until

LANES = ("grpc",)

LAYOUT = KvLayout((LayerSpec(None, 8, 64),) * 4, "bfloat16", block_tokens=16)
ENTRY_BYTES = LAYOUT.entry_bytes(0)
BLOCKS = [BlockEntries(key, LAYOUT.all_layers) for key in keys("lost", 40)]
NUM_ENTRIES = len(BLOCKS) * LAYOUT.num_layers
IN_THE_FIRST, IN_THE_SECOND = ENTRY_BYTES, 3 * ENTRY_BYTES
"""Bytes that end in the middle of a stream's message; the first has two entries."""


def port_of(running: Running) -> int:
    return int(running.address.rpartition(":")[2])


def payload(entry: Entry) -> bytes:
    key, layer = entry
    return (key + bytes([layer])) * (ENTRY_BYTES // 33) + bytes(ENTRY_BYTES % 33)


def fill(running: Running) -> None:
    writer = running.pool.store.open_writer()
    running.pool.store.grant(writer, LAYOUT, BLOCKS)
    for key, layers in BLOCKS:
        for layer in iter_layers(layers):
            running.pool.store.put(writer, seal(key, layer, payload((key, layer)), Codec.RAW))
    running.pool.store.abandon(writer)


class Reading:
    """A reader in the west, of what the sources have."""

    def __init__(self, west: Running, *addresses: str, num_blocks: int = len(BLOCKS), wait_s: float = LIMIT_S) -> None:
        self.got: set[Entry] = set()
        self.missing = 0
        sources = [Source(0, num_blocks, Datacenter("east"), (address,)) for address in addresses]
        self._arrivals = west.client.fetch(LAYOUT, BLOCKS[:num_blocks], sources, wait_s, soon())
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with aclosing(self._arrivals) as arrivals:
            async for arrived in arrivals:
                for received in arrived.frames:
                    entry = (received.key, received.layer)
                    assert entry not in self.got
                    assert open_frame(received) == payload(entry)
                    self.got.add(entry)
                self.missing += sum(block.layers.bit_count() for block in arrived.missing)


@pytest.fixture
async def west(channels: Channels) -> AsyncIterator[Running]:
    async with serving(channels, dc="west", stall_s=3.0) as running:
        yield running


@pytest.fixture
async def east(channels: Channels) -> AsyncIterator[Running]:
    async with serving(channels, dc="east") as running:
        yield running


@pytest.fixture(autouse=True)
def never_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is no slow link: silence there is silence."""
    monkeypatch.setattr(links, "ASSUMED_BYTES_PER_S", 1e9)


async def fill_when_all_wait(running: Running, num_streams: int) -> None:
    """Else the quickest streams have brought it all before the last has connected."""
    shares = running.pool.servicer._shares
    await until(lambda: sum(len(share.streams) for share in shares._open.values()) == num_streams)
    fill(running)


@pytest.mark.parametrize("breaks", [True, False], ids=["reset", "silent"])
async def test_what_a_lost_stream_owed_comes_over_another(west: Running, east: Running, breaks: bool) -> None:
    async with proxied(port_of(east), {3: IN_THE_FIRST}) as proxy:
        reading = Reading(west, proxy.address)
        await fill_when_all_wait(east, 8)
        lost = await proxy.silent(3)
        if breaks:
            lost.reset()
        await reading.task
        assert len(reading.got) == NUM_ENTRIES
        await check_the_books(west, east, proxy, "worker_lost" if breaks else "deadline_exceeded")
    await until(lambda: west.idle and east.idle)


async def check_the_books(west: Running, east: Running, proxy: Proxy, code: str) -> None:
    await until(lambda: west.idle)
    assert west.count("pull_streams_lost_total", peer=proxy.address, code=code) == 1
    assert west.count("pulls_total", peer=proxy.address, outcome="finished") == 1
    for received in ("pulled_entries_total", "pulled_bytes_total"):
        scale = ENTRY_BYTES if "bytes" in received else 1
        assert west.count(received, peer=proxy.address) == NUM_ENTRIES * scale
    assert west.count("link_received_entries_total", dc="east") == NUM_ENTRIES
    (load,) = west.pool.pulls.link_loads()
    assert (load.backlog_bytes, load.crossed_bytes) == (0, NUM_ENTRIES * ENTRY_BYTES)
    sent = east.count("link_sent_entries_total", dc="west", urgency="foreground")
    assert sent > NUM_ENTRIES, "what was on the way when the stream was lost has left twice"


async def test_a_pull_over_one_connection_tries_another(west: Running, east: Running) -> None:
    fill(east)
    async with proxied(port_of(east), {0: IN_THE_FIRST}) as proxy:
        reading = Reading(west, proxy.address, num_blocks=3)
        (await proxy.silent(0)).reset()
        await reading.task
        assert len(reading.got) == 3 * LAYOUT.num_layers
        assert len(proxy.connections) == 2
        assert west.count("pulled_entries_total", peer=proxy.address) == 3 * LAYOUT.num_layers
    await until(lambda: west.idle and east.idle)


async def test_what_one_source_cannot_give_comes_from_the_next(
    west: Running, east: Running, channels: Channels
) -> None:
    """Every connection to the first source falls silent after some entries, as if the way there were cut."""
    limits = dict.fromkeys(range(8), IN_THE_SECOND)
    async with serving(channels, dc="east") as south, proxied(port_of(east), limits) as proxy:
        fill(south)
        reading = Reading(west, proxy.address, south.address)
        await fill_when_all_wait(east, 8)
        await reading.task
        assert len(reading.got) == NUM_ENTRIES
        assert west.count("pulls_total", peer=proxy.address, outcome="failed") == 1
        first = west.count("pulled_entries_total", peer=proxy.address)
        assert first > 0
        assert west.count("pulled_entries_total", peer=south.address) == NUM_ENTRIES - first
    await until(lambda: west.idle and east.idle)


async def test_only_what_nobody_can_give_is_missing(west: Running, east: Running) -> None:
    async with proxied(port_of(east), dict.fromkeys(range(8), IN_THE_SECOND)) as proxy:
        reading = Reading(west, proxy.address, wait_s=1.0)
        await fill_when_all_wait(east, 8)
        await reading.task
        assert 0 < len(reading.got) < NUM_ENTRIES
        assert reading.missing == NUM_ENTRIES - len(reading.got)
    await until(lambda: west.idle and east.idle)


async def test_a_peer_that_only_waits_is_not_silent(channels: Channels) -> None:
    """Prefill computes for longer than a peer may be silent."""
    async with serving(channels, dc="west", stall_s=1.5) as west, serving(channels, dc="east") as east:
        fetching = Fetching(west.client, wanting(CHAIN), [Source(0, 4, Datacenter("east"), (east.address,))])
        watching = Fetching(east.client, wanting(CHAIN), crossing=Crossing(heartbeat_s=0.5))
        await until(lambda: len(watching.sizes) >= 5)
        assert not any(watching.sizes)
        await publish(east, CHAIN)
        assert sorted((await fetching.done()).got) == sorted(entries(CHAIN))
        await watching.done()
        assert west.count("pulls_total", peer=east.address, outcome="finished") == 1
        await until(lambda: west.idle and east.idle)


async def test_a_stream_that_others_leave_nothing_to_is_not_silent(channels: Channels) -> None:
    """Entries come one by one, more often than heartbeats are due: each goes out on one stream and wakes them all."""
    async with serving(channels, dc="west", stall_s=1.5) as west, serving(channels, dc="east") as east:
        store = east.pool.store
        writer = store.open_writer()
        store.grant(writer, LAYOUT, BLOCKS)
        reading = Reading(west, east.address)
        for number, block in enumerate(BLOCKS):
            for layer in iter_layers(block.layers):
                store.put(writer, seal(block.key, layer, payload((block.key, layer)), Codec.RAW))
                if number < 12:
                    await asyncio.sleep(0.08)  # 48 times: longer than anybody may be silent
        await reading.task
        store.abandon(writer)
        assert len(reading.got) == NUM_ENTRIES
        assert west.count("pull_streams_lost_total", peer=east.address, code="deadline_exceeded") == 0
        await until(lambda: west.idle and east.idle)


def hang(node: PoolProcess) -> None:
    os.kill(node.process.pid, signal.SIGSTOP)


def wake(node: PoolProcess) -> None:
    with suppress(ProcessLookupError):
        os.kill(node.process.pid, signal.SIGCONT)


def die(node: PoolProcess) -> None:
    os.kill(node.process.pid, signal.SIGKILL)


@pytest.mark.parametrize("fate", [hang, die])
async def test_a_peer_process_that_is_lost_in_the_middle(
    channels: Channels, fate: Callable[[PoolProcess], None]
) -> None:
    """Two processes have the same blocks; the first is stopped, or killed, when the first entries are here."""
    num_blocks = 24
    blocks = pipe_chain("a", num_blocks)
    async with AsyncExitStack() as stack:
        east, south = [await stack.enter_async_context(pool_node([], "east", "127.0.0.1")) for _ in range(2)]
        stack.callback(wake, east)
        for node in (east, south):
            await node.ask(do="fill", name="a", num_blocks=num_blocks)
        west = await stack.enter_async_context(serving(channels, dc="west", stall_s=4.0))
        sources = [Source(0, num_blocks, Datacenter("east"), (node.address,)) for node in (east, south)]
        got: list[Entry] = []
        async with aclosing(west.client.fetch(PIPE, blocks, sources, 30.0, soon())) as arrivals:
            async for arrived in arrivals:
                if not got:
                    fate(east)
                assert not arrived.missing
                got += [(received.key, received.layer) for received in arrived.frames if open_frame(received)]
        assert len(got) == len(set(got)) == num_blocks * PIPE.num_layers
        pulled = [west.count("pulled_entries_total", peer=node.address) for node in (east, south)]
        assert sum(pulled) == len(got)
        assert all(pulled)
        assert west.count("pulls_total", peer=east.address, outcome="failed") == 1
        assert west.count("peers_suspected_total", peer=east.address) == (fate is hang)
        await until(lambda: west.idle)
