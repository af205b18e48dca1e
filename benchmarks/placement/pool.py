"""A pool that says it holds a million blocks, in a process of its own: only its placement log is filled."""

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import psutil

from services.cachepool.app import build_pool
from services.cachepool.settings import PoolSettings
from shared.bus.events import PlacementEvent
from shared.ids import BlockKey, Epoch
from shared.metrics import Metrics
from shared.pool.calls import add_pool_servicer
from shared.rpc.client import Channels
from shared.rpc.server import GrpcServer
from shared.service.health import Health
from shared.service.lifecycle import InFlight

GROUPS = 0b11


@dataclass(frozen=True)
class Served:
    """A pool that can be asked now."""

    address: str
    log_bytes_per_block: float  # of its placement log, the keys themselves not counted: the store has them anyway
    announced_per_s: float  # blocks noted and made into encoded events


@contextmanager
def pool_with(num_blocks: int) -> Iterator[Served]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, num_blocks), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    finally:
        ours.close()
        process.join(10)
        process.kill()


def _main(pipe: Connection, num_blocks: int) -> None:
    asyncio.run(_serve(pipe, num_blocks))


async def _serve(pipe: Connection, num_blocks: int) -> None:
    rng = np.random.default_rng(0)  # keys are random bits, as hashes are: the index's table counts on it
    keys = [BlockKey(rng.bytes(32)) for _ in range(num_blocks)]
    announced = asyncio.Event()
    waiting = num_blocks

    def publish(event: PlacementEvent) -> None:
        nonlocal waiting
        event.encode()
        waiting -= event.num_blocks
        if waiting == 0:
            announced.set()

    async with Channels() as channels:
        pool = build_pool(PoolSettings(), Epoch(1), channels, Metrics(), publish)
        server = GrpcServer("127.0.0.1", 0, Health("grpc"), InFlight())
        add_pool_servicer(pool.servicer, server.grpc)
        address = f"127.0.0.1:{await server.start()}"
        feed = asyncio.create_task(pool.feed.run())
        rss, started = psutil.Process().memory_info().rss, time.perf_counter()
        for number, key in enumerate(keys):
            pool.feed.note(key, GROUPS, GROUPS)
            if number % 4096 == 0:
                await asyncio.sleep(0)
        await announced.wait()
        rate = num_blocks / (time.perf_counter() - started)
        grown = psutil.Process().memory_info().rss - rss
        pipe.send(Served(address, grown / num_blocks, rate))
        await asyncio.get_running_loop().run_in_executor(None, _wait_for_end, pipe)
        feed.cancel()
        await server.stop(0)


def _wait_for_end(pipe: Connection) -> None:
    try:
        pipe.recv()
    except EOFError:
        return
