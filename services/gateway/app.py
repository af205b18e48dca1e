"""Composition root of the gateway."""

import asyncio
import gc
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass

from aiohttp import web

from services.gateway.admission.gate import GateLimits, TurnGate
from services.gateway.api.generation import GenerationRoutes
from services.gateway.api.info import InfoRoutes
from services.gateway.api.intake import RequestIntake
from services.gateway.api.middleware import echo_request_id, envelope
from services.gateway.api.prefixes import PrefixRoutes
from services.gateway.cluster.arrivals import Arrivals
from services.gateway.cluster.devices import ServedPrompts
from services.gateway.cluster.feed import DECODE_CONDITION, Feed
from services.gateway.cluster.pins import Prefixes
from services.gateway.cluster.promises import PrefillPromises
from services.gateway.cluster.registry import Registry
from services.gateway.metrics import GatewayMetrics, TextCollector
from services.gateway.model import ServedModel, load_model
from services.gateway.placement.index import PlacementIndex
from services.gateway.placement.metrics import IndexCollector
from services.gateway.placement.table.native import load_match
from services.gateway.request.attempt import DecodeCalls, HandOffTerms
from services.gateway.request.feedback import Feedback
from services.gateway.request.pipeline import Pipeline
from services.gateway.request.planning import Planner
from services.gateway.request.prefilling import PrefillCalls
from services.gateway.routing.calibration import Calibration
from services.gateway.routing.policies import policy_of
from services.gateway.routing.router import Router
from services.gateway.settings import GatewaySettings
from shared.bus.events import TOPIC_LOAD, TOPIC_MEMBERSHIP, TOPIC_PLACEMENT
from shared.config import load
from shared.host import open_host
from shared.ids import Datacenter
from shared.log import get_logger
from shared.metrics import Metrics
from shared.pool.admin import PoolAdmin
from shared.rpc.client import Channels
from shared.service.health import Health
from shared.service.http import HttpServer, status_routes
from shared.service.lifecycle import InFlight, Lifecycle
from shared.workers.decode import DecodeClient
from shared.workers.prefill import PrefillClient

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
        parts = make_parts(model, host.channels, host.metrics)
        feed = Feed(parts.index, parts.registry, host.channels, host.health)
        # From the end: every process repeats itself within two seconds, and old beats of dead ones are worth nothing.
        topics = (TOPIC_PLACEMENT, TOPIC_MEMBERSHIP, TOPIC_LOAD)
        consumer = host.bus.consumer(topics, feed.take, from_beginning=False, on_reset=feed.reset)
        prefixes = make_prefixes(parts, Datacenter(settings.dc))
        host.connect()
        host.jobs.start(consumer.run(), name="consumer")
        host.jobs.start(feed.run(), name="feed")
        host.jobs.start(prefixes.run(), name="prefixes")
        app = make_http_app(parts, settings, host.health, host.inflight, executor, host.metrics, prefixes)
        server = await stack.enter_async_context(
            HttpServer(app, settings.http_host, settings.http_port, host.security.http_server)
        )
        gc.collect()  # or what is garbage by now would stay
        gc.freeze()  # the model's and the libraries' objects stay: no collection has to look at them again
        log.info("gateway_started", port=server.port, model=model.name, layout=model.layout.hash[:12])

        await lifecycle.stopping.wait()
        host.health.drain()
        host.inflight.drain()
        if not await host.inflight.idle(settings.drain_s):
            log.warning("requests_cut_off", num_requests=host.inflight.count)


@dataclass(frozen=True)
class GatewayParts:
    """What a gateway knows of its cluster, and how it calls it; nothing runs yet."""

    model: ServedModel
    index: PlacementIndex
    promises: PrefillPromises
    registry: Registry
    channels: Channels
    metrics: GatewayMetrics


def make_parts(model: ServedModel, channels: Channels, metrics: Metrics) -> GatewayParts:
    """Make the parts that requests share."""
    index = PlacementIndex(model.layout)
    metrics.registry.register(IndexCollector(index, time.monotonic))
    metrics.registry.register(TextCollector(model.texts))
    registry = Registry(model.fingerprint, model.layout.hash)
    return GatewayParts(model, index, PrefillPromises(), registry, channels, GatewayMetrics(metrics, model.name))


def make_gate(parts: GatewayParts, settings: GatewaySettings) -> TurnGate:
    """Make what hands out turns."""
    limits = GateLimits(settings.dispatch_window_s or math.inf, settings.max_queued, settings.max_queued_of_tenant)
    return TurnGate(limits, parts.metrics, parts.registry.row_s)


def make_pipeline(
    parts: GatewayParts, router: Router, hand_off: HandOffTerms, gate: TurnGate | None = None
) -> Pipeline:
    """Wire the way of a request. `gate`: by default one with limits that are no setting's."""
    model, registry, metrics = parts.model, parts.registry, parts.metrics
    arrivals = Arrivals(parts.index, registry, model.layout)
    prefill = PrefillCalls(PrefillClient(parts.channels), registry, parts.promises, arrivals.note, metrics)
    calibration, served = Calibration(), ServedPrompts()
    feedback = Feedback(calibration, served)
    decode = DecodeCalls(
        DecodeClient(parts.channels), registry, arrivals.note, feedback.first_token, prefill, model, hand_off
    )
    planner = Planner(router, parts.index, parts.promises, registry, served, calibration, metrics)
    return Pipeline(planner, decode, registry, metrics, gate or TurnGate(GateLimits(), metrics))


def make_prefixes(parts: GatewayParts, dc: Datacenter, clock: Callable[[], float] = time.time) -> Prefixes:
    """Make the prefixes that this gateway keeps."""
    return Prefixes(parts.model.layout, parts.registry, PoolAdmin(parts.channels), dc, clock)


def make_http_app(
    parts: GatewayParts,
    settings: GatewaySettings,
    health: Health,
    inflight: InFlight,
    executor: Executor,
    metrics: Metrics,
    prefixes: Prefixes | None = None,
) -> web.Application:
    """`prefixes`: the ones that somebody renews; by default nobody does. Raises `SettingsError`."""
    dc, model = Datacenter(settings.dc), parts.model
    router = Router(dc, model.layout, policy_of(settings), settings.codec)
    hand_off = HandOffTerms(settings.hand_off, int(settings.block_wait_s * 1000))
    pipeline = make_pipeline(parts, router, hand_off, make_gate(parts, settings))
    intake = RequestIntake(settings, inflight, parts.metrics, executor)
    app = web.Application(middlewares=[envelope(parts.metrics)], client_max_size=settings.max_body_bytes)
    app.on_response_prepare.append(echo_request_id)
    app.add_routes(GenerationRoutes(pipeline, model, parts.metrics, settings, intake).routes())
    prefixes = prefixes or make_prefixes(parts, dc)
    app.add_routes(PrefixRoutes(pipeline, model, prefixes, settings, intake).routes())
    app.add_routes(InfoRoutes(model, parts.registry, health, intake).routes())
    app.add_routes(status_routes(metrics.registry, health))
    return app
