"""Who is put under load: gateways of several trees, other routers, and the worker itself, each on the same core."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway.load import Address, drive
from benchmarks.gateway.openai_worker import MODEL
from benchmarks.gateway.processes import ChildProcess, SplitCores, child, file_of, foreign
from benchmarks.gateway.work import completion
from benchmarks.harness import ROOT
from shared.native import default_cache_dir

HOST = "127.0.0.1"
START_S, ASK_AGAIN_S = 60.0, 0.25
WORKER_ALONE = "no gateway"


@dataclass(frozen=True)
class MeasuredServer:
    """A server under load, and the process that does the work."""

    address: Address
    process: ChildProcess
    model: str | None = None  # the name that it wants; None: it serves one

    async def wait_until_ready(self) -> None:
        """Return once it has answered. Raises `TimeoutError`."""
        body = json.dumps({**completion("Hello"), "model": self.model}).encode()
        async with asyncio.timeout(START_S):
            while True:
                try:
                    await drive(self.address, [body], 1)
                    return
                except (OSError, RuntimeError):
                    await asyncio.sleep(ASK_AGAIN_S)


@asynccontextmanager
async def contestants(
    cores: SplitCores, trees: Mapping[str, Path], peers: Mapping[str, str], model: str, step_s: float
) -> AsyncIterator[dict[str, MeasuredServer]]:
    """Run all of them, before the same instant workers. A peer's command has `{port}`, where it is to listen, and
    `{worker}`, the URL of the OpenAI server that it is to ask, or `{decode}`, the address of the decode worker."""
    async with AsyncExitStack() as stack:
        workers = await stack.enter_async_context(child(ROOT, file_of("instant.py"), str(step_s), cores=cores.others))
        decode, prefill, http = json.loads(workers.said)
        found: dict[str, MeasuredServer] = {}
        for name, tree in trees.items():
            places = (f"{HOST}:{decode}", f"{HOST}:{prefill}", model, str(default_cache_dir()))
            served = await stack.enter_async_context(child(tree, file_of("served.py"), *places, cores=cores.measured))
            found[name] = MeasuredServer(Address(HOST, int(served.said)), served)
        for name, command in peers.items():
            port = _free_port()
            told = command.format(port=port, worker=f"http://{HOST}:{http}", decode=f"{HOST}:{decode}")
            peer = await stack.enter_async_context(foreign(told, cores.measured))
            found[name] = MeasuredServer(Address(HOST, port), peer, MODEL)
        found[WORKER_ALONE] = MeasuredServer(Address(HOST, http), workers, MODEL)
        for contestant in found.values():
            await contestant.wait_until_ready()
        yield found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
