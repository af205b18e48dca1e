"""Events and snapshots: from records of the bus and a pool's answers to what a plan may rest on."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.gateway.app import GatewayParts, make_parts
from services.gateway.cluster.feed import DECODE_CONDITION, Feed
from shared.bus.events import (
    TOPIC_LOAD,
    TOPIC_MEMBERSHIP,
    TOPIC_PLACEMENT,
    MembershipEvent,
    PlacementEvent,
    Role,
    StoredBlocks,
)
from shared.bus.kafka import Record
from shared.errors import BadEvent, WorkerLost
from shared.ids import BlockKey, Datacenter, Epoch, WorkerId
from shared.kv.resume import longest_resume
from shared.metrics import Metrics
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import CachePoolServicer, add_CachePoolServicer_to_server
from shared.rpc.client import Channels
from shared.rpc.server import GrpcServer
from shared.service.health import Health
from shared.service.lifecycle import InFlight
from tests.support.events import load
from tests.support.gateway import FINGERPRINT, LAYOUT, served_model
from tests.support.suite import free_ports
from tests.support.waiting import until

POOL = WorkerId("cachepool-east")
KEYS = [BlockKey(bytes([i]) * 32) for i in range(4)]
ALL_GROUPS = 0b11


class FakePool(CachePoolServicer):
    """Answers snapshots with what the test says it holds."""

    def __init__(self) -> None:
        self.epoch, self.sequence = 1, 0
        self.stored: list[BlockKey] = []
        self.num_snapshots = 0
        self.fails = False

    async def Snapshot(self, request: pb.SnapshotRequest, context: Any) -> AsyncIterator[pb.SnapshotReply]:
        self.num_snapshots += 1
        if self.fails:
            raise WorkerLost("not now")
        for keys in [[key] for key in self.stored] or [[]]:
            stored = [pb.StoredBlocks(keys=b"".join(keys), groups=ALL_GROUPS, memory_groups=ALL_GROUPS)]
            yield pb.SnapshotReply(epoch=self.epoch, sequence=self.sequence, stored=stored)

    def Publish(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.PublishReply]:
        raise NotImplementedError

    def Fetch(self, request: Any, context: Any) -> AsyncIterator[pb.FetchReply]:
        raise NotImplementedError

    def Probe(self, request: Any, context: Any) -> AsyncIterator[pb.FetchReply]:
        raise NotImplementedError

    async def Lanes(self, request: Any, context: Any) -> Any: ...

    async def Lookup(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def Pin(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def Unpin(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


class World:
    def __init__(
        self, parts: GatewayParts, feed: Feed, health: Health, pool: FakePool, address: str, server: GrpcServer
    ) -> None:
        self.parts = parts
        self.feed = feed
        self.health = health
        self.pool = pool
        self.address = address
        self.server = server
        self._offset = 0

    async def send(self, topic: str, value: bytes) -> None:
        self._offset += 1
        await self.feed.take(Record(topic, 0, self._offset, 0, "k", value, ()))

    async def announce(self, worker: str, role: Role, epoch: int = 1, *, left: bool = False) -> None:
        event = MembershipEvent(
            worker=WorkerId(worker),
            role=role,
            dc=Datacenter("east"),
            address=self.address,
            fingerprint=FINGERPRINT,
            layout_hash=LAYOUT.hash,
            epoch=Epoch(epoch),
            pool_address=self.address,
            left=left,
        )
        await self.send(TOPIC_MEMBERSHIP, event.encode())

    async def placed(self, sequence: int, *keys: BlockKey, epoch: int = 1) -> None:
        stored = (StoredBlocks(b"".join(keys), ALL_GROUPS, ALL_GROUPS),) if keys else ()
        event = PlacementEvent(holder=POOL, dc=Datacenter("east"), epoch=Epoch(epoch), sequence=sequence, stored=stored)
        await self.send(TOPIC_PLACEMENT, event.encode())

    def longest(self) -> int | None:
        held = self.parts.index.held(KEYS, time.monotonic())
        return int(longest_resume(LAYOUT, held[POOL].groups)) if POOL in held else None


@asynccontextmanager
async def make_world(directory: Path) -> AsyncIterator[World]:
    pool = FakePool()
    server = GrpcServer("127.0.0.1", free_ports(1)[0], Health(), InFlight())
    add_CachePoolServicer_to_server(pool, server.grpc)
    port = await server.start()
    async with Channels() as channels:
        parts, health = make_parts(served_model(directory), channels, Metrics()), Health(DECODE_CONDITION)
        feed = Feed(parts.index, parts.registry, parts.channels, health)
        loop = asyncio.create_task(feed.run())
        yield World(parts, feed, health, pool, f"127.0.0.1:{port}", server)
        loop.cancel()
        await asyncio.wait({loop})
    await server.stop(0)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with make_world(tmp_path) as world:
        yield world


async def test_a_pool_that_is_met_is_asked_for_its_snapshot_and_followed(world: World) -> None:
    world.pool.stored, world.pool.sequence = KEYS[:2], 5
    await world.announce(POOL, "cachepool")
    await until(lambda: world.longest() == 2)
    await world.placed(6, KEYS[2])
    assert world.longest() == 3
    await world.announce(POOL, "cachepool")
    await asyncio.sleep(0.1)
    assert world.pool.num_snapshots == 1  # a repeated announcement is no reason to ask again


async def test_small_events_wait_for_one_another_and_not_for_a_question(world: World) -> None:
    await world.announce(POOL, "cachepool")
    await until(lambda: world.longest() == 0)
    index = world.parts.index
    for sequence, key in enumerate(KEYS, 1):
        await world.placed(sequence, key)
    await world.placed(5)
    assert index.certainty(0.0)[POOL].sequence == 5
    await world.placed(6, BlockKey(bytes([9]) * 32))
    await until(lambda: not index.has_waiting)
    assert world.longest() == 4


async def test_the_index_is_brought_room_to_grow(world: World) -> None:
    await world.announce(POOL, "cachepool")
    await until(lambda: world.longest() == 0)
    index, num_blocks, sequence, before = world.parts.index, 0, 0, 0
    while index.room_wanted is None:
        sequence += 1
        keys = [BlockKey(hashlib.sha256(b"%d" % number).digest()) for number in range(num_blocks, num_blocks + 1000)]
        num_blocks += len(keys)
        before = index.nbytes
        await world.placed(sequence, *keys)
    await until(lambda: index.is_moving)
    assert index.nbytes >= 3 * before
    assert index.num_blocks() == {POOL: num_blocks}


async def test_a_gap_heals_by_a_snapshot(world: World) -> None:
    await world.announce(POOL, "cachepool")
    await until(lambda: world.longest() == 0)
    world.pool.stored, world.pool.sequence = KEYS[:3], 4
    await world.placed(4, KEYS[2])
    assert world.longest() is None
    await until(lambda: world.longest() == 3)


async def test_a_restarted_pool_and_a_reset_bus_lead_to_new_snapshots(world: World) -> None:
    world.pool.stored = KEYS[:2]
    await world.announce(POOL, "cachepool")
    await until(lambda: world.longest() == 2)
    world.pool.epoch, world.pool.stored = 2, []
    await world.announce(POOL, "cachepool", epoch=2)
    await until(lambda: world.longest() == 0)
    world.pool.stored = KEYS[:1]
    world.feed.reset(TOPIC_MEMBERSHIP)
    assert world.longest() == 0
    world.feed.reset(TOPIC_PLACEMENT)
    await until(lambda: world.longest() == 1)


async def test_a_failing_snapshot_is_tried_again_without_haste(world: World) -> None:
    world.pool.fails = True
    await world.announce(POOL, "cachepool")
    for sequence in range(1, 100):
        await world.placed(sequence)
    await until(lambda: world.pool.num_snapshots > 0)
    await asyncio.sleep(0.3)
    assert world.pool.num_snapshots <= 8
    assert world.longest() is None
    world.pool.fails = False
    world.pool.sequence = 99
    await until(lambda: world.longest() == 0)


async def test_a_pool_that_left_is_forgotten(world: World) -> None:
    await world.announce(POOL, "cachepool")
    await until(lambda: world.longest() == 0)
    await world.announce(POOL, "cachepool", left=True)
    assert world.longest() is None
    assert world.parts.registry.view().pools == {}


async def test_a_pool_that_cannot_be_reached_is_in_no_plan_whatever_the_bus_says(world: World) -> None:
    await world.announce(POOL, "cachepool")
    await until(lambda: world.longest() == 0)
    await world.server.stop(0)
    await until(lambda: world.parts.registry.view().pools == {})
    await world.announce(POOL, "cachepool")
    view = world.parts.registry.view()
    assert (view.pools, view.problems) == ({}, (f"{POOL}: cannot be reached",))
    again = GrpcServer("127.0.0.1", int(world.address.split(":")[1]), Health(), InFlight())
    add_CachePoolServicer_to_server(world.pool, again.grpc)
    await again.start()
    await until(lambda: POOL in world.parts.registry.view().pools)
    await again.stop(0)


def is_ready(world: World) -> bool:
    return world.health.ready


async def test_ready_as_long_as_a_decode_worker_is_known(world: World) -> None:
    assert not is_ready(world)
    await world.announce("decode-east", "decode")
    assert is_ready(world)
    assert world.health.conditions[DECODE_CONDITION].detail == "decode-east"
    event = load("decode-east", epoch=1, running=3, waiting=1)
    await world.send(TOPIC_LOAD, event.encode())
    assert world.parts.registry.view().decode.rows["requests"].tolist() == [4]
    await world.announce("decode-east", "decode", left=True)
    assert not is_ready(world)


@pytest.mark.parametrize("topic", [TOPIC_PLACEMENT, TOPIC_MEMBERSHIP, TOPIC_LOAD])
async def test_a_corrupt_event_is_refused_and_the_next_one_taken(world: World, topic: str) -> None:
    with pytest.raises(BadEvent):
        await world.send(topic, b"\xff\xfe not an event")
    await world.announce("decode-east", "decode")
    assert is_ready(world)
