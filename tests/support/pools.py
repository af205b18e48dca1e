"""A cache pool over real gRPC on loopback, and readers and writers to try it with."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import grpc

from services.cachepool.app import PoolParts, build_pool
from services.cachepool.serving.ends import lane_ends
from services.cachepool.settings import PoolSettings
from services.cachepool.tiers.bucket import ObjectClient
from shared.bus.events import PlacementEvent
from shared.deadline import Deadline
from shared.ids import BlockKey, Epoch
from shared.kv.entries import BlockEntries, Source
from shared.kv.frame import Frame, open_frame
from shared.kv.layout import KvLayout, iter_layers
from shared.lanes.settings import LaneName
from shared.lanes.slots import SlotMemory
from shared.metrics import Metrics
from shared.pool.calls import SERVICE, add_pool_servicer
from shared.pool.client import AT_HOME, Crossing, PoolClient
from shared.pool.lanes.chosen import PoolLanes
from shared.pool.lanes.lane import Arrived
from shared.pool.nodes import Pool
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import CachePoolStub
from shared.rpc.client import Channels
from shared.rpc.convert import add_frames, entries_to_messages, layout_to_message
from shared.rpc.server import GrpcServer
from shared.security.credentials import NO_SECURITY
from shared.service.health import Health
from shared.service.lifecycle import InFlight
from tests.support.samples import ALL, LAYOUT, frame, keys, wanting
from tests.support.waiting import LIMIT_S, until

Entry = tuple[BlockKey, int]
CHAIN = keys("chain", 4)


@dataclass
class Running:
    """A pool that serves on loopback."""

    pool: PoolParts
    server: GrpcServer
    metrics: Metrics
    events: list[PlacementEvent]
    client: PoolClient
    stub: Any  # the generated one

    @property
    def address(self) -> str:
        return self.client.address

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"prfaas:{name}", labels) or 0.0

    @property
    def idle(self) -> bool:
        return all(self.count(name) == 0 for name in ("leases_held", "readers_open", "writers_open"))


@dataclass
class LanesInUse:
    """What pools offer and clients use: all, unless a test sets it."""

    allowed: tuple[LaneName, ...] = get_args(LaneName)
    folder: Path = PoolSettings.lane_folder


lanes_in_use = LanesInUse()


@asynccontextmanager
async def serving(channels: Channels, client: ObjectClient | None = None, **settings: Any) -> AsyncIterator[Running]:
    """Run a pool with these settings; `client` is the object store behind it, if any."""
    if client is not None:
        settings = {"object_url": "memory://", **settings}
    settings = {"lanes": lanes_in_use.allowed, "lane_folder": lanes_in_use.folder, **settings}
    metrics, health, inflight = Metrics(), Health("grpc"), InFlight()
    events: list[PlacementEvent] = []
    server = GrpcServer("127.0.0.1", 0, health, inflight)
    address = f"127.0.0.1:{server.bind()}"
    async with AsyncExitStack() as stack:
        known = PoolSettings(**settings)
        ends = await stack.enter_async_context(lane_ends(known, NO_SECURITY))
        pool = build_pool(known, Epoch(7), channels, metrics, events.append, client, own_address=address, ends=ends)
        stack.push_async_callback(pool.lanes.close)
        add_pool_servicer(pool.servicer, server.grpc)
        await server.start()
        stub = CachePoolStub(channels.get(address))
        loops = [asyncio.create_task(pool.feed.run())]
        if pool.tier is not None:
            loops.append(asyncio.create_task(pool.tier.run()))
        received = SlotMemory(64 << 20, shared=False)
        lanes = PoolLanes(channels, known.lanes, received)
        stack.push_async_callback(lanes.close)
        try:
            yield Running(pool, server, metrics, events, PoolClient(channels, address, lanes=lanes), stub)
        finally:
            await pool.pulls.close()
            await server.stop(0)
            if pool.tier is not None:
                await pool.tier.close(0)
            for loop in loops:
                loop.cancel()
            results = await asyncio.gather(*loops, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results), results
            assert inflight.count == 0
            assert pool.store.stats[3:6] == (0, 0, 0), "a lease or a grant outlived its stream"
            pool.store.check_integrity()
            assert received.num_kept == 0


def soon() -> Deadline:
    return Deadline.after(2 * LIMIT_S)


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
        self,
        client: Pool,
        blocks: Sequence[BlockEntries],
        sources: Iterable[Source] = (),
        wait_s: float = LIMIT_S,
        crossing: Crossing = AT_HOME,
    ) -> None:
        self.got: list[Entry] = []
        self.missing: set[Entry] = set()
        self.sizes: list[int] = []  # payload bytes of each message
        if isinstance(client, PoolClient):
            self._arrivals = client.fetch(LAYOUT, blocks, sources, wait_s, soon(), crossing)
        else:
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

    async def until_missing(self, num_entries: int) -> None:
        await until(lambda: len(self.missing) == num_entries)

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


@asynccontextmanager
async def dying_writer(running: Running, num_frames: int) -> AsyncIterator[None]:
    """A writer of CHAIN that vanishes after `num_frames` when the context ends."""
    call = await raw_publish(running, opening(CHAIN), sending(frames_of(CHAIN)[:num_frames]))
    await until(lambda: running.count("entries_published_total") == num_frames)
    yield
    call.cancel()


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


@asynccontextmanager
async def lying_in_bytes(channels: Channels, reply: bytes) -> AsyncIterator[PoolClient]:
    """A client of a pool whose only answer to Fetch is `reply`, whatever that is."""

    async def fetch(request: bytes, context: Any) -> None:
        await context.write(reply)

    server = GrpcServer("127.0.0.1", 0, Health(), InFlight())
    handlers: dict[str, Any] = {"Fetch": grpc.unary_stream_rpc_method_handler(fetch)}
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = await server.start()
    try:
        yield PoolClient(channels, f"127.0.0.1:{port}")
    finally:
        await server.stop(0)
