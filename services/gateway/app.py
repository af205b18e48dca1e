"""Composition root of the gateway."""

import asyncio
import gc
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from services.gateway.admission.gate import GateLimits, TurnGate
from services.gateway.api.access import access
from services.gateway.api.capacity import CapacityRoutes
from services.gateway.api.generation import GenerationRoutes
from services.gateway.api.info import InfoRoutes, suite_version
from services.gateway.api.intake import RequestIntake
from services.gateway.api.middleware import echo_request_id, envelope
from services.gateway.api.openapi.routes import OpenApiRoutes
from services.gateway.api.prefixes import PrefixRoutes
from services.gateway.api.unstored import UnstoredRoutes
from services.gateway.cluster.arrivals import Arrivals
from services.gateway.cluster.devices import ServedPrompts
from services.gateway.cluster.feed import DECODE_CONDITION, Feed
from services.gateway.cluster.pins import Prefixes
from services.gateway.cluster.promises import PrefillPromises
from services.gateway.cluster.registry import Registry
from services.gateway.control.answer import answer_of
from services.gateway.control.believed import probes
from services.gateway.control.case import PlanningTerms
from services.gateway.control.controller import Controller
from services.gateway.control.gauges import PlanCollector
from services.gateway.control.observed import Observations
from services.gateway.control.state import ControlState, Looking
from services.gateway.control.ways import LinkTerms
from services.gateway.live.latest_plan import LatestPlan
from services.gateway.live.state import LiveState
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
from services.gateway.routing.costs.transfer import UNKNOWN_LINK_BYTES_PER_S
from services.gateway.routing.policies import policy_of
from services.gateway.routing.router import Router
from services.gateway.settings import GatewaySettings
from services.gateway.syntax.answers import AnswerSyntax, syntax_of
from services.gateway.tenants.authentication import authentication_of
from services.gateway.timeline.timelines import Timelines
from services.gateway.web.live import LiveRoutes
from services.gateway.web.page import PageRoutes
from services.gateway.web.requests import RequestRoutes
from shared.bus.kafka import topics_with_copies
from shared.config import load
from shared.host import open_host
from shared.ids import Datacenter
from shared.log import get_logger
from shared.metrics import Metrics
from shared.model.grammar.grammars import Grammars
from shared.model.grammar.vocabulary import GrammarVocabulary
from shared.pool.admin import PoolAdmin
from shared.rpc.client import Channels
from shared.security.guard import PeerGuard
from shared.service.health import Health
from shared.service.http import HttpServer, status_routes
from shared.service.lifecycle import InFlight, Lifecycle
from shared.workers.decode import DecodeClient
from shared.workers.prefill import PrefillClient

log = get_logger()

TEXT_THREADS = 2

COLLECT_EVERY = 10_000
"""Objects between two looks for cycles. Hundreds of streams have thousands under way, hardly any of them in a cycle: by
default all are looked at several times."""


async def run(lifecycle: Lifecycle) -> None:
    """Serve until the lifecycle says stop. Raises `SettingsError`, `ModelFileError`."""
    settings = load(GatewaySettings)
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="text"))
        known = topics_with_copies(settings.kafka_mirrors)
        host = await stack.enter_async_context(open_host(settings, DECODE_CONDITION, topics=known))
        compiling = asyncio.get_running_loop().run_in_executor(executor, load_match)
        model = await asyncio.get_running_loop().run_in_executor(executor, load_model, settings)
        if await compiling is None:
            log.warning("match_kernel_unavailable", consequence="matching a long prompt takes twice as long")
        parts = make_parts(model, host.channels, host.metrics)
        feed = Feed(parts.index, parts.registry, host.channels, host.health)
        # From the end: every process repeats itself within two seconds, and old beats of dead ones are worth nothing.
        topics = [topic.name for topic in known]
        consumer = host.bus.consumer(topics, feed.take, from_beginning=False, on_reset=feed.reset)
        prefixes = make_prefixes(parts, Datacenter(settings.dc))
        controller = make_controller(parts, settings, host.metrics)
        host.connect()
        host.jobs.start(consumer.run(), name="consumer")
        host.jobs.start(feed.run(), name="feed")
        host.jobs.start(prefixes.run(), name="prefixes")
        host.jobs.start(controller.run(), name="controller")
        inflight, guard = host.inflight, host.security.guard
        app = make_http_app(parts, settings, host.health, inflight, executor, host.metrics, prefixes, controller, guard)
        server = await stack.enter_async_context(
            HttpServer(app, settings.http_host, settings.http_port, host.security.http_server)
        )
        settle()
        log.info("gateway_started", port=server.port, model=model.name, layout=model.layout.hash[:12])

        await lifecycle.stopping.wait()
        host.health.drain()
        host.inflight.drain()
        if not await host.inflight.idle(settings.drain_s):
            log.warning("requests_cut_off", num_requests=host.inflight.count)


def settle() -> None:
    """Have the collector of cycles look at requests only, now that what serves them is there."""
    gc.collect()  # or what is garbage by now would stay
    gc.freeze()  # the model's and the libraries' objects stay: no collection has to look at them again
    gc.set_threshold(COLLECT_EVERY)


@dataclass(frozen=True)
class GatewayParts:
    """What a gateway knows of its cluster, and how it calls it; nothing runs yet."""

    model: ServedModel
    index: PlacementIndex
    promises: PrefillPromises
    registry: Registry
    channels: Channels
    metrics: GatewayMetrics
    observations: Observations
    calibration: Calibration
    served: ServedPrompts
    timelines: Timelines


def make_parts(model: ServedModel, channels: Channels, metrics: Metrics) -> GatewayParts:
    """Make the parts that requests share."""
    index = PlacementIndex(model.layout)
    metrics.registry.register(IndexCollector(index, time.monotonic))
    metrics.registry.register(TextCollector(model.texts))
    registry = Registry(model.fingerprint, model.layout.hash)
    instruments = GatewayMetrics(metrics, model.name)
    return GatewayParts(
        model=model,
        index=index,
        promises=PrefillPromises(),
        registry=registry,
        channels=channels,
        metrics=instruments,
        observations=Observations(),
        calibration=Calibration(),
        served=ServedPrompts(),
        timelines=Timelines(),
    )


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
    feedback = Feedback(parts.calibration, parts.served, parts.observations, metrics)
    decode = DecodeCalls(
        client=DecodeClient(parts.channels),
        registry=registry,
        note_arrival=arrivals.note,
        note_first_token=feedback.first_token,
        prefill=prefill,
        model=model,
        hand_off=hand_off,
        observations=parts.observations,
    )
    planner = Planner(router, parts.index, parts.promises, registry, parts.served, parts.calibration, metrics)
    return Pipeline(planner, decode, registry, metrics, gate or TurnGate(GateLimits(), metrics))


def make_prefixes(parts: GatewayParts, dc: Datacenter, clock: Callable[[], float] = time.time) -> Prefixes:
    """Make the prefixes that this gateway keeps."""
    return Prefixes(parts.model.layout, parts.registry, PoolAdmin(parts.channels), dc, clock)


def make_router(model: ServedModel, settings: GatewaySettings) -> Router:
    """Raises `SettingsError`."""
    return Router(Datacenter(settings.dc), model.layout, policy_of(settings), settings.codec)


def make_controller(parts: GatewayParts, settings: GatewaySettings, metrics: Metrics) -> Controller:
    """Make the controller and its gauges, once for each process. Raises `SettingsError`."""
    model, home = parts.model, Datacenter(settings.dc)
    terms = PlanningTerms(
        home=home,
        layout=model.layout,
        links=LinkTerms(settings.codec, UNKNOWN_LINK_BYTES_PER_S),
        time_per_output_token_s=settings.slo_time_per_output_token_s or settings.plan_time_per_output_token_s,
        max_batch=settings.max_batch,
        target_utilisation=settings.plan_utilisation,
    )
    lengths = probes(model.layout.block_tokens, model.max_model_len)
    looking = Looking(make_router(model, settings).plan, lengths, terms)
    controller = Controller(parts.registry, parts.observations, parts.calibration, looking)
    metrics.registry.register(PlanCollector(lambda: controller.state, home))
    return controller


async def plan_answer(controller: Controller) -> dict[str, Any]:
    """Answer what is believed now."""
    return answer_of(await controller.known(), controller.terms, controller.now())


def make_syntax(model: ServedModel, settings: GatewaySettings) -> AnswerSyntax:
    """Find out how the model writes reasoning and calls of tools."""
    template = model.tokenizer.chat
    return syntax_of(
        template.text,
        takes_tools="tools" in template.variables,
        tool_parser=settings.tool_parser,
        reasoning_parser=settings.reasoning_parser,
    )


def make_live(parts: GatewayParts, home: Datacenter, controller: Controller) -> LiveState:
    """Make what says to listeners what is."""

    def answer(state: ControlState) -> dict[str, Any]:
        return answer_of(state, controller.terms, controller.now())

    plan = LatestPlan(lambda: controller.state, answer)
    return LiveState(parts.registry, parts.timelines, plan.current, home, parts.model.name)


def make_http_app(
    parts: GatewayParts,
    settings: GatewaySettings,
    health: Health,
    inflight: InFlight,
    executor: Executor,
    metrics: Metrics,
    prefixes: Prefixes | None = None,
    controller: Controller | None = None,
    guard: PeerGuard | None = None,
) -> web.Application:
    """`prefixes`, `controller`: those that run; by default nobody renews, nobody looks. Raises `SettingsError`."""
    dc, model = Datacenter(settings.dc), parts.model
    hand_off = HandOffTerms(settings.hand_off, int(settings.block_wait_s * 1000))
    pipeline = make_pipeline(parts, make_router(model, settings), hand_off, make_gate(parts, settings))
    intake = RequestIntake(settings, inflight, parts.metrics, executor)
    middlewares = [envelope(parts.metrics), access(authentication_of(settings))]
    app = web.Application(middlewares=middlewares, client_max_size=settings.max_body_bytes)
    app.on_response_prepare.append(echo_request_id)
    grammars = Grammars(partial(GrammarVocabulary.of, model.tokenizer, model.vocab_size))
    syntax = make_syntax(model, settings)
    generation = GenerationRoutes(pipeline, model, parts.metrics, settings, intake, grammars, parts.timelines, syntax)
    app.add_routes(generation.routes())
    app.add_routes(UnstoredRoutes().routes())
    prefixes = prefixes or make_prefixes(parts, dc)
    app.add_routes(PrefixRoutes(pipeline, model, prefixes, settings, intake).routes())
    app.add_routes(InfoRoutes(model, parts.registry, health, intake).routes())
    controller = controller or make_controller(parts, settings, metrics)
    app.add_routes(CapacityRoutes(partial(plan_answer, controller)).routes())
    app.add_routes(status_routes(metrics.registry, health, guard))
    app.add_routes(LiveRoutes(make_live(parts, dc, controller), health).routes())
    app.add_routes(RequestRoutes(parts.timelines).routes())
    app.add_routes(PageRoutes().routes())
    app.add_routes(OpenApiRoutes(suite_version()).routes())
    return app
