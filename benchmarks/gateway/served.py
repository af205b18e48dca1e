"""The measured process: a gateway's HTTP application with logs, metrics and channels as in service, without a bus.

Run as a file, with the tree whose code is to be measured in `PYTHONPATH`: nothing is imported but that tree's code.
"""

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

from services.gateway import app as gateway
from services.gateway.app import GatewayParts, make_http_app, make_parts
from services.gateway.model import load_model
from services.gateway.settings import GatewaySettings
from shared.bus.events import MembershipEvent, Role
from shared.ids import Datacenter, Epoch, WorkerId
from shared.log import configure
from shared.metrics import Metrics, watch_loop_lag
from shared.rpc.client import Channels
from shared.service import lifecycle
from shared.service.health import Health
from shared.service.http import HttpServer
from shared.service.lifecycle import InFlight


def new_event_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return how the tree's services make their event loop."""
    return getattr(lifecycle, "new_event_loop", asyncio.new_event_loop)


def settle() -> None:
    """Do what the tree's gateway does before it serves."""
    getattr(gateway, "settle", gc.freeze)()


HOME, AWAY = Datacenter("east"), Datacenter("west")


def announce(parts: GatewayParts, worker: str, role: Role, dc: Datacenter, address: str) -> None:
    """Have the registry know a worker, whose pool is at the same address; nobody calls that pool."""
    model = parts.model
    event = MembershipEvent(
        worker=WorkerId(worker),
        role=role,
        dc=dc,
        address=address,
        fingerprint=model.fingerprint,
        layout_hash=model.layout.hash,
        model_name=model.name,
        epoch=Epoch(1),
        pool_address=f"{dc}:1",
    )
    parts.registry.apply_membership(event, time.monotonic())


def meet_workers(parts: GatewayParts, decode: str, prefill: str) -> None:
    """A decode worker at home, prefill workers and pools in both datacenters."""
    announce(parts, "decode", "decode", HOME, decode)
    for dc in (HOME, AWAY):
        announce(parts, f"prefill-{dc}", "prefill", dc, prefill)
        pool = WorkerId(f"cachepool-{dc}")
        announce(parts, pool, "cachepool", dc, f"{dc}:1")
        parts.index.doubt(pool)
        intake = parts.index.open_snapshot(pool)
        parts.index.finish_snapshot(intake, 1, 0)
        intake.close()


async def serve(decode: str, prefill: str, model_name: str, cache_dir: Path) -> None:
    settings = GatewaySettings(dc=HOME, http_port=0, model=model_name, cache_dir=cache_dir)
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(2, thread_name_prefix="text"))
        configure(settings.service, dc=settings.dc)
        metrics, health, inflight = Metrics(), Health(), InFlight()
        channels = await stack.enter_async_context(Channels())
        parts = make_parts(load_model(settings), channels, metrics)
        meet_workers(parts, decode, prefill)
        app = make_http_app(parts, settings, health, inflight, executor, metrics)
        server = await stack.enter_async_context(HttpServer(app, "127.0.0.1", 0))
        lag = asyncio.create_task(watch_loop_lag(metrics))
        stack.callback(lag.cancel)
        settle()
        print(server.port, file=sys.stderr, flush=True)  # stdout has the logs
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("decode", help="address")
    parser.add_argument("prefill", help="address")
    parser.add_argument("model")
    parser.add_argument("cache_dir", type=Path)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=new_event_loop()) as runner:
        runner.run(serve(options.decode, options.prefill, options.model, options.cache_dir))
