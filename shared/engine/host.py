"""The composition root of both engines: everything around the model, opened in order and closed in reverse."""

import gc
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import torch

from shared.allocator import keep_freed_memory
from shared.bus.events import LoadEvent, MembershipEvent, Role
from shared.engine.codecs import CodecThreads, codec_threads
from shared.engine.costs.exported import export_costs
from shared.engine.costs.kept import kept_fit
from shared.engine.costs.load import EngineLoad
from shared.engine.costs.prior import prior_of
from shared.engine.costs.steps import StepCosts
from shared.engine.loaded import LoadedModel, load_model
from shared.engine.pool_access import PoolAccess
from shared.engine.settings import EngineSettings
from shared.engine.stage import RegisteredMemory, memory_for, select_stager
from shared.engine.thread import WorkThread
from shared.engine.transfer import PageTransfer, TransferMetrics
from shared.host import SERVES_GRPC, WorkerServer, open_host, status_server
from shared.ids import Datacenter, Epoch, WorkerId
from shared.interpreter import take_turns_often
from shared.kv.codec.native import load_kernels
from shared.kv.payloads.native import load_payload_kernels
from shared.lanes.shared_memory.attachment import Attachment
from shared.log import get_logger
from shared.metrics import Metrics
from shared.pool.lanes.chosen import engine_lanes
from shared.pool.nodes import pool_at
from shared.rpc.server import GrpcServer
from shared.service.lifecycle import Background, Lifecycle
from shared.service.watchdog import watch_work

log = get_logger()

MODEL = "model"
"""The health condition that is true once the model is loaded."""


@dataclass(frozen=True)
class EngineHost:
    """What an engine's own parts are built from. Everything in it is open and owned by `serve_engine`."""

    model: LoadedModel
    torch_thread: WorkThread
    pool: PoolAccess
    transfer: PageTransfer
    metrics: Metrics
    server: GrpcServer
    jobs: Background
    costs: StepCosts


async def serve_engine(
    lifecycle: Lifecycle,
    settings: EngineSettings,
    role: Role,
    build: Callable[[EngineHost], Callable[[], EngineLoad]],
) -> None:
    """Load the model, let `build` add its servicer and its loops, announce, serve until asked to stop, drain.

    `build` returns the function that states the engine's load.
    """
    keep_freed_memory()
    take_turns_often()
    async with AsyncExitStack() as stack:
        torch_thread = WorkThread("torch", partial(_begin_torch, settings))
        stack.callback(torch_thread.close)
        copier = WorkThread("copier", partial(use_device, settings.device))
        stack.callback(copier.close)
        codecs = CodecThreads(codec_threads())
        stack.callback(codecs.close)
        host = await stack.enter_async_context(open_host(settings, MODEL, SERVES_GRPC))
        await stack.enter_async_context(status_server(host))
        if await copier.run(load_kernels) is None:
            log.warning("codec_kernels_unavailable", consequence="int8 and int4 take up to four times as long")
        if await copier.run(load_payload_kernels) is None:
            log.warning("payload_kernels_unavailable", consequence="entries are copied and verified one by one")
        model = await torch_thread.run(partial(load_model, settings), may_take_long=True)
        host.health.set(MODEL, True, model.files.name)
        server = WorkerServer(host)
        registered = memory_for(torch.device(settings.device))
        stack.callback(registered.close)
        prepare = partial(_prepare, host.jobs, registered)
        host.channels.expect(settings.pool, settings.dc)
        lanes = engine_lanes(settings, host.channels, host.security.lane_client, prepare)
        stack.push_async_callback(lanes.close)
        pool = PoolAccess((settings.pool,), partial(pool_at, host.channels, lanes=lanes, dc=settings.dc))
        stager = select_stager(torch.device(settings.device), registered)
        transfer = PageTransfer(model.kv, copier, TransferMetrics(host.metrics), stager, codecs)
        kept = kept_fit(settings, model.files.fingerprint)
        costs = StepCosts(kept.load(prior_of(model.config, settings)))
        load = build(EngineHost(model, torch_thread, pool, transfer, host.metrics, server.grpc, host.jobs, costs))
        _export_pages(host.metrics, model)
        export_costs(host.metrics, costs, lambda: load().queued.seconds)
        host.jobs.start(kept.keep(costs.fit), name="profile")
        membership = _membership(settings, role, model, server.address, server.epoch)
        host.jobs.start(lanes.prepare(settings.pool), name="lane")
        if settings.stuck_step_s:
            host.jobs.start(
                watch_work(lambda: torch_thread.busy_s, settings.stuck_step_s, host.health, MODEL), name="watch"
            )
        await server.start(membership, partial(_load_event, settings, server.epoch, model, costs, load))
        gc.collect()  # or what is garbage by now would stay
        gc.freeze()  # the model's and the libraries' objects stay: a collection need not look at them again
        log.info(
            "engine_started",
            model=model.files.name,
            address=server.address,
            layout=model.layout.hash[:12],
            device=settings.device,
            attention=model.transformer.attention,
        )

        await lifecycle.stopping.wait()
        await server.leave()
        await server.stop()
        log.info("engine_stopped", reservations_held=model.kv.held)


def _begin_torch(settings: EngineSettings) -> None:
    torch.set_num_threads(settings.num_threads)
    use_device(settings.device)


def use_device(name: str) -> None:
    """Make a GPU this thread's current device: kernels start there, wherever their tensors are."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def _prepare(jobs: Background, registered: RegisteredMemory, attachment: Attachment) -> None:
    """Map a pool's memory ahead of its use, as far as the pool has touched it, and let the device copy from and to it.

    Registering memory with the device maps it, too.
    """
    if not registered.registers:
        jobs.start(attachment.keep_mapped(), name="mapping ahead")
        return
    address = attachment.address
    registered.grow(address, attachment.touched_bytes)
    attachment.watch(partial(registered.grow, address))
    attachment.when_unviewed(partial(registered.forget, address))


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
    settings: EngineSettings, epoch: Epoch, model: LoadedModel, costs: StepCosts, load: Callable[[], EngineLoad]
) -> LoadEvent:
    return load().event(WorkerId(settings.worker_id), epoch, model.kv.usage, costs)


def _export_pages(metrics: Metrics, model: LoadedModel) -> None:
    usage = metrics.gauge("kv_cache_usage_perc", "Share of KV pages in use, 0 to 1")
    usage.set_function(lambda: model.kv.usage)
    held = metrics.gauge("kv_reservations_held", "Reservations of pages that are not released; 0 when idle")
    held.set_function(lambda: model.kv.held)
