"""Composition root of the cache pool: what is opened, in which order, and how it ends."""

import asyncio
import gc
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import monotonic, time

from services.cachepool.collector import StoreCollector
from services.cachepool.links.links import LinkCollector, PoolLinks
from services.cachepool.metrics import PoolMetrics
from services.cachepool.peers.peers import PeerPulls
from services.cachepool.peers.watch import LinkWatch
from services.cachepool.placement import PlacementFeed, PlacementLog
from services.cachepool.serving.ends import LaneEnds, lane_ends
from services.cachepool.serving.offers import OfferedLanes
from services.cachepool.serving.servicer import PoolServicer
from services.cachepool.serving.shortage import Shortage
from services.cachepool.serving.tier import NoTier
from services.cachepool.settings import PoolSettings
from services.cachepool.store.pins import Pins
from services.cachepool.store.store import Store
from services.cachepool.tiers.bucket import ObjectClient
from services.cachepool.tiers.opening import open_tier
from services.cachepool.tiers.tier import ObjectTier
from shared.allocator import keep_freed_memory
from shared.bus.events import TOPIC_PLACEMENT, LoadEvent, MembershipEvent, PlacementEvent
from shared.config import load
from shared.deadline import Deadline
from shared.host import SERVES_GRPC, WorkerServer, open_host, status_server
from shared.ids import BlockKey, Datacenter, Epoch, WorkerId
from shared.interpreter import take_turns_often
from shared.kv.payloads.native import load_payload_kernels
from shared.lanes.ahead import TouchAhead
from shared.lanes.slots import SlotMemory, limit_for
from shared.log import get_logger
from shared.metrics import Metrics
from shared.pool.calls import add_pool_servicer
from shared.pool.lanes.chosen import PoolLanes
from shared.rpc.client import Channels
from shared.service.lifecycle import Lifecycle

log = get_logger()

COLLECT_EVERY = 50_000
"""Objects between two looks for cycles. An entry is six objects without any; by default each message is looked at."""


@dataclass(frozen=True)
class PoolParts:
    """The parts of one pool node, wired; nothing runs yet."""

    store: Store
    pins: Pins
    feed: PlacementFeed
    tier: ObjectTier | None
    pulls: PeerPulls
    links: PoolLinks
    servicer: PoolServicer
    lanes: PoolLanes  # to other pools
    watch: LinkWatch


def build_pool(
    settings: PoolSettings,
    epoch: Epoch,
    channels: Channels,
    metrics: Metrics,
    publish: Callable[[PlacementEvent], None],
    client: ObjectClient | None = None,
    own_address: str = "",
    ends: LaneEnds | None = None,
) -> PoolParts:
    """Wire a pool node whose placement events go to `publish`, which must not block.

    `client` takes the place of the object store that the settings name. Without `ends` payloads travel in messages.
    Raises `SettingsError` when the settings name no object store that there is.
    """
    ends = ends or LaneEnds(SlotMemory(limit_for(settings.pool_bytes), shared=False))
    counters = PoolMetrics(metrics)
    placement = PlacementLog(WorkerId(settings.worker_id), Datacenter(settings.dc), epoch)
    feed = PlacementFeed(placement, publish, settings.heartbeat_s)
    store = Store(settings.pool_bytes, monotonic, settings.tenant_quota, memory=ends.memory)
    ends.memory.on_lack(Shortage(store))
    pins = Pins(store, settings.pin_share, settings.tenant_quota, settings.max_pin_s)
    metrics.registry.register(StoreCollector(store, pins, placement))
    tier = open_tier(settings, store, metrics, client) if settings.object_url else None

    def note(key: BlockKey) -> None:
        feed.note(key, *holding(store, tier, key))

    store.listen(on_groups=lambda key, _groups: note(key))
    if tier is not None:
        tier.index.on_change = note
        store.listen(on_settled=tier.writes.note)
    links = PoolLinks(Datacenter(settings.dc), metrics, monotonic)
    to_peers = [lane for lane in settings.lanes if lane != "shared_memory"]
    lanes = PoolLanes(
        channels, to_peers, ends.memory, num_connections=settings.link_connections, verifies=True, tls=ends.tls
    )
    pulls = PeerPulls(store, channels, links, counters, settings, lanes, own_address)
    offered = OfferedLanes(ends, settings.pool_bytes)
    metrics.registry.register(LinkCollector(pulls.link_loads))
    servicer = PoolServicer(settings, store, pins, placement, tier or NoTier(), pulls, links, offered, counters)
    watch = LinkWatch(pulls.network, pulls.suspects, metrics, monotonic, num_connections=settings.link_connections)
    return PoolParts(store, pins, feed, tier, pulls, links, servicer, lanes, watch)


def holding(store: Store, tier: ObjectTier | None, key: BlockKey) -> tuple[int, int]:
    """Return the layer groups of a block that are held wholly, in any tier and in memory, as bitmasks."""
    memory_groups = store.groups(key)
    stored = tier.index.get(key) if tier else None
    if stored is None:
        return memory_groups, memory_groups
    return stored.layout.group_mask(store.lookup(key) | stored.layers), memory_groups


async def run(lifecycle: Lifecycle) -> None:
    """Serve until told to stop. Raises `SettingsError`; everything opened is closed in reverse order."""
    settings = load(PoolSettings)
    keep_freed_memory()
    take_turns_often()
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(open_host(settings, SERVES_GRPC))
        await stack.enter_async_context(status_server(host))
        server = WorkerServer(host)

        def publish(event: PlacementEvent) -> None:
            server.producer.publish(TOPIC_PLACEMENT, settings.worker_id, event.encode())

        await asyncio.to_thread(
            load_payload_kernels
        )  # which may compile them; without, entries are verified one by one
        ends = await stack.enter_async_context(lane_ends(settings, host.security))
        host.jobs.start(TouchAhead(ends.memory, settings.ahead_bytes).run(), name="memory ahead")
        pool = build_pool(
            settings, server.epoch, host.channels, host.metrics, publish, own_address=server.address, ends=ends
        )
        stack.push_async_callback(pool.lanes.close)
        stack.push_async_callback(pool.pulls.close)
        if pool.tier is not None:
            host.jobs.start(pool.tier.run(), name="object tier")
        host.jobs.start(pool.feed.run(), name="placement")
        host.jobs.start(pool.pins.run(), name="pins")
        host.jobs.start(pool.watch.run(server.announce_soon), name="link watch")
        add_pool_servicer(pool.servicer, server.grpc.grpc)
        membership = _membership(settings, server.epoch, server.address)
        await server.start(membership, lambda: _load(settings, server.epoch, pool))
        gc.collect()  # or what is garbage by now would stay
        gc.freeze()  # the libraries' objects stay: no collection has to look at them again
        gc.set_threshold(COLLECT_EVERY)
        log.info("cachepool_ready", address=server.address, budget_bytes=settings.pool_bytes, epoch=server.epoch)

        await lifecycle.stopping.wait()
        await server.leave()
        end = Deadline.after(settings.drain_s)
        num_cancelled = await server.stop()
        if pool.tier is not None and (num_unwritten := await pool.tier.close(end.remaining())):
            log.warning("blocks_not_written", num_blocks=num_unwritten)
        log.info("cachepool_drained", num_streams_cancelled=num_cancelled, **pool.store.stats._asdict())


def _membership(settings: PoolSettings, epoch: Epoch, address: str) -> MembershipEvent:
    return MembershipEvent(
        worker=WorkerId(settings.worker_id),
        role="cachepool",
        dc=Datacenter(settings.dc),
        address=address,
        epoch=epoch,
        capacity=settings.pool_bytes,
        pool_address=address,
    )


def _load(settings: PoolSettings, epoch: Epoch, pool: PoolParts) -> LoadEvent:
    stats = pool.store.stats
    return LoadEvent(
        worker=WorkerId(settings.worker_id),
        epoch=epoch,
        running=stats.num_readers + stats.num_writers,
        waiting=0,
        kv_usage=stats.used_bytes / settings.pool_bytes,
        speed_tokens_per_s=0.0,
        at_ms=int(time() * 1000),
        links=pool.pulls.link_loads(),
        suspects=pool.pulls.suspects(),
        tier_bytes_per_s=0.0 if pool.tier is None else pool.tier.read_bytes_per_s,
    )
