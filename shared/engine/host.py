"""The composition root of both engines: everything around the model, opened in order and closed in reverse."""

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import torch

from shared.allocator import keep_freed_memory
from shared.bus.announce import Announcer
from shared.bus.events import LoadEvent, MembershipEvent, Role
from shared.bus.kafka import Bus
from shared.engine.codecs import CodecThreads, codec_threads
from shared.engine.fetch import FetchContext, FetchMetrics
from shared.engine.loaded import LoadedModel, load_model
from shared.engine.settings import EngineSettings
from shared.engine.stage import select_stager
from shared.engine.thread import WorkThread
from shared.ids import Datacenter, Epoch, WorkerId, new_epoch
from shared.kv.codec.native import load_kernels
from shared.log import configure, get_logger
from shared.metrics import Metrics, watch_loop_lag
from shared.pool.client import PoolClient
from shared.rpc.client import Channels
from shared.rpc.server import GrpcServer
from shared.service.health import Health
from shared.service.http import StatusServer
from shared.service.lifecycle import Background, InFlight, Lifecycle, background

log = get_logger()


@dataclass(frozen=True)
class Host:
    """What an engine's own parts are built from. Everything in it is open and owned by `serve_engine`."""

    model: LoadedModel
    torch_thread: WorkThread
    fetch: FetchContext
    metrics: Metrics
    server: GrpcServer
    jobs: Background


@dataclass(frozen=True)
class EngineLoad:
    """What `prfaas.load` says about an engine at one moment."""

    running: int
    waiting: int
    tokens_per_s: float


async def serve_engine(
    lifecycle: Lifecycle,
    settings: EngineSettings,
    role: Role,
    build: Callable[[Host], Callable[[], EngineLoad]],
) -> None:
    """Load the model, let `build` add its servicer and its loops, announce, serve until asked to stop, drain.

    `build` returns the function that states the engine's load.
    """
    configure(settings.service, level=settings.log_level, fmt=settings.log_format, dc=settings.dc)
    keep_freed_memory()
    async with AsyncExitStack() as stack:
        health, metrics, inflight = Health("model", "grpc"), Metrics(), InFlight()
        jobs = await stack.enter_async_context(background())
        await stack.enter_async_context(StatusServer(settings.http_host, settings.http_port, metrics.registry, health))
        torch_thread = WorkThread("torch", partial(torch.set_num_threads, settings.num_threads))
        stack.callback(torch_thread.close)
        copier = WorkThread("copier")
        stack.callback(copier.close)
        codecs = CodecThreads(codec_threads())
        stack.callback(codecs.close)
        if await copier.run(load_kernels) is None:
            log.warning("codec_kernels_unavailable", consequence="int8 and int4 take up to four times as long")
        channels = await stack.enter_async_context(Channels())
        model = await torch_thread.run(partial(load_model, settings))
        health.set("model", True, model.files.name)
        pool = PoolClient(channels, settings.pool)
        stager = select_stager(torch.device(settings.device))
        fetch = FetchContext(pool, model.kv, model.layout, copier, FetchMetrics(metrics), stager, channels, codecs)
        server = GrpcServer(settings.grpc_host, settings.grpc_port, health, inflight)
        load = build(Host(model, torch_thread, fetch, metrics, server, jobs))
        _export_pages(metrics, model)
        jobs.start(watch_loop_lag(metrics), name="loop lag")
        port = await server.start()
        health.set("grpc", True)

        epoch = new_epoch()
        bus = Bus(settings.kafka, settings.worker_id, health=health, metrics=metrics)
        jobs.start(bus.run(), name="bus")
        producer = bus.producer()
        jobs.start(producer.run(), name="producer")
        membership = _membership(settings, role, model, f"{settings.advertise_host}:{port}", epoch)
        announcer = Announcer(producer, membership, partial(_load_event, settings, epoch, model, load))
        jobs.start(announcer.run(), name="announcer")
        log.info(
            "engine_started",
            model=model.files.name,
            address=membership.address,
            layout=model.layout.hash[:12],
            device=settings.device,
            attention=model.transformer.attention,
        )

        await lifecycle.stopping.wait()
        await announcer.leave()
        await server.stop(settings.drain_s)
        log.info("engine_stopped", reservations_held=model.kv.held)


def _membership(
    settings: EngineSettings, role: Role, model: LoadedModel, address: str, epoch: Epoch
) -> MembershipEvent:
    return MembershipEvent(
        worker=WorkerId(settings.worker_id),
        role=role,
        dc=Datacenter(settings.dc),
        address=address,
        fingerprint=model.files.fingerprint,
        layout_hash=model.layout.hash,
        model_name=model.files.name,
        epoch=epoch,
        capacity=model.kv.capacity_tokens(settings.stride_tokens),
        pool_address=settings.pool,
        codec_threads=codec_threads(),
    )


def _load_event(
    settings: EngineSettings, epoch: Epoch, model: LoadedModel, load: Callable[[], EngineLoad]
) -> LoadEvent:
    now = load()
    return LoadEvent(
        worker=WorkerId(settings.worker_id),
        epoch=epoch,
        running=now.running,
        waiting=now.waiting,
        kv_usage=model.kv.usage,
        speed_tokens_per_s=now.tokens_per_s,
        at_ms=time.time_ns() // 1_000_000,
    )


def _export_pages(metrics: Metrics, model: LoadedModel) -> None:
    usage = metrics.gauge("kv_cache_usage_perc", "Share of KV pages in use, 0 to 1")
    usage.set_function(lambda: model.kv.usage)
    held = metrics.gauge("kv_reservations_held", "Reservations of pages that are not released; 0 when idle")
    held.set_function(lambda: model.kv.held)
