"""Composition root of the cache pool: what is opened, in which order, and how it ends."""

import gc
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import monotonic, time

from services.cachepool.links.links import LinkCollector, Links
from services.cachepool.metrics import PoolMetrics, StoreCollector
from services.cachepool.peers.peers import PeerPulls
from services.cachepool.placement import PlacementFeed, PlacementLog
from services.cachepool.serving.servicer import PoolServicer
from services.cachepool.settings import PoolSettings
from services.cachepool.store.pins import Pins
from services.cachepool.store.store import Store
from services.cachepool.tiers.bucket import ObjectClient
from services.cachepool.tiers.opening import open_tier
from services.cachepool.tiers.tier import NoTier, ObjectTier
from shared.allocator import keep_freed_memory
from shared.bus.announce import Announcer
from shared.bus.events import TOPIC_PLACEMENT, LoadEvent, MembershipEvent, PlacementEvent
from shared.bus.kafka import Bus
from shared.config import load
from shared.deadline import Deadline
from shared.ids import BlockKey, Datacenter, Epoch, WorkerId, new_epoch
from shared.log import configure, get_logger
from shared.metrics import Metrics, watch_loop_lag
from shared.pool.calls import add_pool_servicer
from shared.rpc.client import Channels
from shared.rpc.server import GrpcServer
from shared.service.health import Health
from shared.service.http import StatusServer
from shared.service.lifecycle import InFlight, Lifecycle, background

log = get_logger()

COLLECT_EVERY = 50_000
"""Objects between two looks for cycles. An entry is six objects without any; by default each message is looked at."""


@dataclass(frozen=True)
class Pool:
    """The parts of one pool, wired; nothing runs yet."""

    store: Store
    pins: Pins
    feed: PlacementFeed
    tier: ObjectTier | None
    pulls: PeerPulls
    links: Links
    servicer: PoolServicer


def build_pool(
    settings: PoolSettings,
    epoch: Epoch,
    channels: Channels,
    metrics: Metrics,
    publish: Callable[[PlacementEvent], None],
    client: ObjectClient | None = None,
) -> Pool:
    """Wire a pool whose placement events go to `publish`, which must not block.

    `client` takes the place of the object store that the settings name. Raises `SettingsError` when they name none.
    """
    counters = PoolMetrics(metrics)
    placement = PlacementLog(WorkerId(settings.worker_id), Datacenter(settings.dc), epoch)
    feed = PlacementFeed(placement, publish, settings.heartbeat_s)
    tier: ObjectTier | None = None

    def note_holding(key: BlockKey) -> None:
        feed.note(key, *holding(store, tier, key))

    def note_settled(key: BlockKey) -> None:
        if tier is not None:
            tier.writes.note(key)

    store = Store(
        settings.pool_bytes, monotonic, lambda key, _groups: note_holding(key), note_settled, settings.tenant_quota
    )
    pins = Pins(store, settings.pin_share, settings.tenant_quota, settings.max_pin_s)
    if settings.object_url:
        tier = open_tier(settings, store, metrics, note_holding, client)
    metrics.registry.register(StoreCollector(store, pins, placement))
    links = Links(Datacenter(settings.dc), metrics, monotonic)
    pulls = PeerPulls(store, channels, links, counters, settings)
    metrics.registry.register(LinkCollector(pulls.link_loads))
    servicer = PoolServicer(settings, store, pins, placement, tier or NoTier(), pulls, links, counters)
    return Pool(store, pins, feed, tier, pulls, links, servicer)


def holding(store: Store, tier: ObjectTier | None, key: BlockKey) -> tuple[int, int]:
    """Return the layer groups of a block that are held wholly, in any tier and in memory, as bitmasks."""
    memory_groups = store.groups(key)
    stored = tier.index.get(key) if tier else None
    if stored is None:
        return memory_groups, memory_groups
    return stored.layout.group_mask(store.lookup(key) | stored.layers), memory_groups


async def run(lifecycle: Lifecycle) -> None:
    """Serve until told to stop. Raises SettingsError; everything opened is closed in reverse order."""
    settings = load(PoolSettings)
    keep_freed_memory()
    configure(settings.service, level=settings.log_level, fmt=settings.log_format, dc=settings.dc)
    epoch = new_epoch()
    health, metrics, inflight = Health("grpc"), Metrics(), InFlight()
    async with AsyncExitStack() as stack:
        jobs = await stack.enter_async_context(background())
        await stack.enter_async_context(StatusServer(settings.http_host, settings.http_port, metrics.registry, health))
        bus = Bus(settings.kafka, settings.worker_id, health=health, metrics=metrics)
        producer = bus.producer()
        channels = await stack.enter_async_context(Channels())

        def publish(event: PlacementEvent) -> None:
            producer.publish(TOPIC_PLACEMENT, settings.worker_id, event.encode())

        pool = build_pool(settings, epoch, channels, metrics, publish)
        stack.push_async_callback(pool.pulls.close)
        if pool.tier is not None:
            jobs.start(pool.tier.run(), name="object tier")
        server = GrpcServer(settings.grpc_host, settings.grpc_port, health, inflight)
        add_pool_servicer(pool.servicer, server.grpc)
        port = await server.start()
        address = pool.pulls.own_address = f"{settings.advertise_host}:{port}"
        announcer = Announcer(producer, _membership(settings, epoch, address), lambda: _load(settings, epoch, pool))
        for name, loop in (
            ("bus", bus.run()),
            ("producer", producer.run()),
            ("placement", pool.feed.run()),
            ("pins", pool.pins.run()),
            ("announcer", announcer.run()),
            ("loop lag", watch_loop_lag(metrics)),
        ):
            jobs.start(loop, name=name)
        gc.freeze()  # the libraries' objects stay: no collection has to look at them again
        gc.set_threshold(COLLECT_EVERY)
        health.set("grpc", True)
        log.info("cachepool_ready", address=address, budget_bytes=settings.pool_bytes, epoch=epoch)

        await lifecycle.stopping.wait()
        await announcer.leave()
        end = Deadline.after(settings.drain_s)
        num_cancelled = await server.stop(settings.drain_s)
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


def _load(settings: PoolSettings, epoch: Epoch, pool: Pool) -> LoadEvent:
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
    )
