"""A prefill worker alone with its pool: how much of the sending computing hides, how long the torch thread waits
between steps, and how late the event loop is meanwhile.

The worker runs in this process, with its own gRPC server; the pool in a second one. Nothing else is needed.
"""

import argparse
import asyncio
import multiprocessing
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import torch

from benchmarks import harness
from benchmarks.harness import Report, Row, at_most
from services.cachepool.app import build_pool
from services.cachepool.settings import PoolSettings
from services.prefill.app import build_prefill
from services.prefill.settings import PrefillSettings
from shared.allocator import keep_freed_memory
from shared.config import parse_bytes
from shared.engine.fetch import FetchContext, FetchMetrics
from shared.engine.host import Host
from shared.engine.loaded import LoadedModel, load_model
from shared.engine.thread import WorkThread
from shared.health import Health
from shared.ids import new_epoch
from shared.kv.codec import Codec
from shared.kv.hashing import num_prefix_blocks
from shared.lifecycle import InFlight, background
from shared.log import configure
from shared.metrics import Metrics
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import PrefillStub, add_CachePoolServicer_to_server
from shared.rpc.client import Channels
from shared.rpc.pool import PoolClient
from shared.rpc.server import GrpcServer

if TYPE_CHECKING:
    from shared.proto.prfaas_pb2_grpc import PrefillAsyncStub  # exists in the stubs only

ALONE = (512, 2048, 8000)
MIXED = (100, 200, 300, 500, 1000, 2000)
NUM_CLIENTS = 8
SAMPLE_S = 0.005
MOST_EXPOSED = 0.05
MOST_LAG_S = 0.025
COUNTERS = (
    *("prefill_computed_tokens", "prefill_steps", "prefill_step_prompts", "prefill_step_seconds"),
    *("prefill_step_gap_seconds", "prefill_compute_seconds", "prefill_emission_exposed_seconds"),
)


def pool_process(told: Connection) -> None:
    """Serve a pool until the other end of `told` is closed."""
    asyncio.run(_serve_pool(told))


async def _serve_pool(told: Connection) -> None:
    configure("cachepool", level="warning")
    async with Channels() as channels:
        metrics = Metrics()
        pool = build_pool(PoolSettings(dc="east"), new_epoch(), channels, metrics, lambda _event: None)
        server = GrpcServer("127.0.0.1", 0, Health("grpc"), InFlight())
        add_CachePoolServicer_to_server(pool.servicer, server.grpc)
        address = pool.pulls.own_address = f"127.0.0.1:{await server.start()}"
        told.send(address)
        await asyncio.to_thread(told.poll, None)
        await server.stop(0)
        await pool.pulls.close()


class Worker:
    """A running prefill worker and what it has counted."""

    def __init__(self, model: LoadedModel, stub: "PrefillAsyncStub", metrics: Metrics) -> None:
        self._model = model
        self._stub = stub
        self._metrics = metrics
        self._random = random.Random(0)

    async def prefill(self, num_tokens: int) -> None:
        """Prefill random tokens, which no cache holds."""
        tokens = self._random.choices(range(1, min(30_000, self._model.config.vocab_size)), k=num_tokens)
        request = pb.PrefillRequest(
            token_ids=tokens,
            num_blocks=num_prefix_blocks(num_tokens, self._model.layout.block_tokens),
            fingerprint=self._model.files.fingerprint,
            layout_hash=self._model.layout.hash,
            codec=Codec.RAW.value,  # type: ignore[arg-type]
        )
        async for _ in self._stub.Prefill(request, timeout=600):
            pass

    def counted(self) -> dict[str, float]:
        return {name: self._metrics.registry.get_sample_value(f"prfaas:{name}_total") or 0.0 for name in COUNTERS}


@asynccontextmanager
async def worker(settings: PrefillSettings) -> AsyncIterator[Worker]:
    async with AsyncExitStack() as stack:
        channels = await stack.enter_async_context(Channels())
        jobs = await stack.enter_async_context(background())
        torch_thread, copier, metrics = (
            WorkThread("torch", partial(torch.set_num_threads, settings.num_threads)),
            WorkThread("copier"),
            Metrics(),
        )
        stack.callback(torch_thread.close)
        stack.callback(copier.close)
        model = await torch_thread.run(lambda: load_model(settings))
        pool = PoolClient(channels, settings.pool)
        fetch = FetchContext(pool, model.kv, model.layout, copier, FetchMetrics(metrics))
        server = GrpcServer("127.0.0.1", 0, Health("grpc"), InFlight())
        build_prefill(settings, Host(model, torch_thread, fetch, metrics, server, jobs))
        port = await server.start()
        try:
            yield Worker(model, PrefillStub(channels.get(f"127.0.0.1:{port}")), metrics)
        finally:
            await server.stop(1)


async def lag(samples: list[float]) -> None:
    """Note for ever how late the event loop wakes a sleeper, in seconds."""
    while True:
        due = time.perf_counter() + SAMPLE_S
        await asyncio.sleep(SAMPLE_S)
        samples.append(max(0.0, time.perf_counter() - due))


async def observed(name: str, running: Worker, lengths: Sequence[Sequence[int]]) -> Row:
    """Let a client for each of `lengths` prefill those one after the other; return what that took."""

    async def client(of_client: Sequence[int]) -> None:
        for num_tokens in of_client:
            await running.prefill(num_tokens)

    samples: list[float] = []
    before, sampler = running.counted(), asyncio.create_task(lag(samples))
    started = time.perf_counter()
    await asyncio.gather(*(client(of_client) for of_client in lengths))
    wall = time.perf_counter() - started
    sampler.cancel()
    spent = {key: value - before[key] for key, value in running.counted().items()}
    computing, exposed = spent["prefill_compute_seconds"], spent["prefill_emission_exposed_seconds"]
    return {
        "work": name,
        "tokens_per_s": round(spent["prefill_computed_tokens"] / wall, 1),
        "prompts_per_step": round(spent["prefill_step_prompts"] / spent["prefill_steps"], 2),
        "step_ms": round(1000 * spent["prefill_step_seconds"] / spent["prefill_steps"], 1),
        "gap_ms": round(1000 * spent["prefill_step_gap_seconds"] / spent["prefill_steps"], 3),
        "busy_share": round(spent["prefill_step_seconds"] / wall, 4),
        "exposed_share": round(exposed / (computing + exposed), 4),
        "lag_p50_ms": round(1000 * statistics.median(samples), 2),
        "lag_p99_ms": round(1000 * statistics.quantiles(samples, n=100)[98], 2),
        "lag_max_ms": round(1000 * max(samples), 1),
    }


async def measure_all(settings: PrefillSettings, rounds: int) -> list[Row]:
    async with worker(settings) as running:
        await running.prefill(settings.chunk_tokens)
        rows = [await observed(f"{n} tokens, alone", running, [[n] * rounds]) for n in ALONE]
        mixed = random.Random(1)
        clients = [[mixed.choice(MIXED) for _ in range(4 * rounds)] for _ in range(NUM_CLIENTS)]
        rows.append(await observed(f"{NUM_CLIENTS} clients, {MIXED[0]} to {MIXED[-1]} tokens", running, clients))
    return rows


def measure(options: argparse.Namespace) -> Report:
    configure("prefill", level="warning")
    keep_freed_memory()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=pool_process, args=(theirs,))
    process.start()
    theirs.close()
    try:
        settings = PrefillSettings(
            dc="east", pool=ours.recv(), model=options.model, kv_bytes=parse_bytes("1GiB"), threads=options.threads
        )
        rows = asyncio.run(measure_all(settings, 1 if options.quick else 3))
    finally:
        ours.close()
        process.join(timeout=10)
    checks = []
    for row in rows:
        assert isinstance(row["exposed_share"], float)
        assert isinstance(row["lag_p99_ms"], float)
        checks.append(at_most(f"emission not hidden, {row['work']}", row["exposed_share"], MOST_EXPOSED))
        checks.append(at_most(f"event-loop lag p99, {row['work']}", row["lag_p99_ms"], 1000 * MOST_LAG_S, "ms"))
    return Report(rows, checks, {"model": options.model, "threads": settings.num_threads})


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: all cores")


if __name__ == "__main__":
    raise SystemExit(harness.main("emission", measure, add_options, description=__doc__))
