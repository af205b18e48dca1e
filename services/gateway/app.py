"""Composition root of the gateway."""

import asyncio
import gc
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack

from aiohttp import web

from services.gateway.api.admission import Admission
from services.gateway.api.generation import GenerationRoutes
from services.gateway.api.info import InfoRoutes
from services.gateway.api.middleware import echo_request_id, envelope
from services.gateway.api.prefixes import PrefixRoutes
from services.gateway.cluster.feed import DECODE_CONDITION, Feed
from services.gateway.cluster.pins import Prefixes
from services.gateway.cluster.promises import Promises
from services.gateway.cluster.registry import Registry
from services.gateway.cluster.view import Cluster
from services.gateway.metrics import GatewayMetrics
from services.gateway.model import ServedModel, load_model
from services.gateway.placement.index import PlacementIndex
from services.gateway.placement.metrics import IndexCollector
from services.gateway.placement.table.native import load_match
from services.gateway.request.pipeline import Pipeline
from services.gateway.routing.plan import RouterSettings
from services.gateway.settings import GatewaySettings
from shared.bus.events import TOPIC_LOAD, TOPIC_MEMBERSHIP, TOPIC_PLACEMENT
from shared.config import load
from shared.host import open_host
from shared.ids import Datacenter
from shared.log import get_logger
from shared.metrics import Metrics
from shared.rpc.client import Channels
from shared.service.health import Health
from shared.service.http import HttpServer, status_routes
from shared.service.lifecycle import InFlight, Lifecycle

log = get_logger()

TEXT_THREADS = 2


async def run(lifecycle: Lifecycle) -> None:
    """Serve until the lifecycle says stop. Raises `SettingsError`, `ModelFileError`."""
    settings = load(GatewaySettings)
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="text"))
        host = await stack.enter_async_context(open_host(settings, DECODE_CONDITION))
        compiling = asyncio.get_running_loop().run_in_executor(executor, load_match)
        model = await asyncio.get_running_loop().run_in_executor(executor, load_model, settings)
        if await compiling is None:
            log.warning("match_kernel_unavailable", consequence="matching a long prompt takes twice as long")
        cluster = make_cluster(model, host.channels, host.metrics)
        feed = Feed(cluster, host.health)
        # From the end: every process repeats itself within two seconds, and old beats of dead ones are worth nothing.
        topics = (TOPIC_PLACEMENT, TOPIC_MEMBERSHIP, TOPIC_LOAD)
        consumer = host.bus.consumer(topics, feed.take, from_beginning=False, on_reset=feed.reset)
        prefixes = Prefixes(cluster, Datacenter(settings.dc))
        host.connect()
        host.jobs.start(consumer.run(), name="consumer")
        host.jobs.start(feed.run(), name="feed")
        host.jobs.start(prefixes.run(), name="prefixes")
        app = make_http_app(cluster, settings, host.health, host.inflight, executor, host.metrics, prefixes)
        server = await stack.enter_async_context(HttpServer(app, settings.http_host, settings.http_port))
        gc.freeze()  # the model's and the libraries' objects stay: no collection has to look at them again
        log.info("gateway_started", port=server.port, model=model.name, layout=model.layout.hash[:12])

        await lifecycle.stopping.wait()
        host.health.drain()
        host.inflight.drain()
        if not await host.inflight.idle(settings.drain_s):
            log.warning("requests_cut_off", num_requests=host.inflight.count)


def make_cluster(model: ServedModel, channels: Channels, metrics: Metrics) -> Cluster:
    index = PlacementIndex(model.layout)
    metrics.registry.register(IndexCollector(index, time.monotonic))
    return Cluster(
        model=model,
        index=index,
        promises=Promises(),
        registry=Registry(model.fingerprint, model.layout.hash),
        channels=channels,
        metrics=GatewayMetrics(metrics, model.name),
    )


def make_http_app(
    cluster: Cluster,
    settings: GatewaySettings,
    health: Health,
    inflight: InFlight,
    executor: Executor,
    metrics: Metrics,
    prefixes: Prefixes | None = None,
) -> web.Application:
    """`prefixes`: the ones that somebody renews; by default nobody does."""
    router = RouterSettings(
        dc=Datacenter(settings.dc),
        layout=cluster.model.layout,
        offload_threshold_tokens=settings.offload_threshold_tokens,
        block_wait_ms=int(settings.block_wait_s * 1000),
        codec=settings.codec,
        hand_off=settings.hand_off,
    )
    pipeline, admission = Pipeline(cluster, router), Admission(settings, inflight, cluster.metrics, executor)
    app = web.Application(middlewares=[envelope(cluster.metrics)], client_max_size=settings.max_body_bytes)
    app.on_response_prepare.append(echo_request_id)
    app.add_routes(GenerationRoutes(pipeline, settings, admission).routes())
    prefixes = prefixes or Prefixes(cluster, Datacenter(settings.dc))
    app.add_routes(PrefixRoutes(pipeline, prefixes, settings, admission).routes())
    app.add_routes(InfoRoutes(cluster.model, cluster.registry, health, admission).routes())
    app.add_routes(status_routes(metrics.registry, health))
    return app
