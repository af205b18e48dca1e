"""A cache pool in a process of its own: it takes commands as lines of JSON and answers each with a line."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from benchmarks.harness import ROOT
from services.cachepool.app import PoolParts, build_pool
from services.cachepool.serving.ends import lane_ends
from services.cachepool.settings import PoolSettings
from shared.ids import new_epoch
from shared.lanes.ahead import TouchAhead
from shared.metrics import Metrics
from shared.pool.calls import add_pool_servicer
from shared.rpc.client import Channels
from shared.rpc.server import GrpcServer
from shared.security.credentials import security_of
from shared.service.health import Health
from shared.service.lifecycle import InFlight, background

TIMEOUT_S = 120.0
MAX_LINE_BYTES = 1 << 20

Command: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class ServedPool:
    """The child's view: a pool that serves at `address`."""

    parts: PoolParts
    address: str
    channels: Channels


@dataclass(frozen=True)
class PoolProcess:
    """The parent's handle."""

    address: str
    process: asyncio.subprocess.Process

    async def ask(self, limit_s: float = TIMEOUT_S, /, **command: Any) -> dict[str, Any]:
        """Have a command carried out; return the answer. Raises `RuntimeError` when the pool has ended."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await _read_line(self.process, limit_s))
        return answer


@asynccontextmanager
async def pool_process(*command: str) -> AsyncIterator[PoolProcess]:
    """Start a program that calls `serve`; end it with the context."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=MAX_LINE_BYTES
    )
    assert process.stdin is not None
    try:
        yield PoolProcess((await _read_line(process, TIMEOUT_S)).decode().strip(), process)
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()


async def serve(
    host: str, settings: PoolSettings, carry_out: Callable[[ServedPool, Command], Awaitable[dict[str, Any]]]
) -> None:
    """Be the child: serve a pool, print its address, answer commands until the parent closes stdin."""
    async with AsyncExitStack() as stack:
        security = security_of(settings)
        channels = await stack.enter_async_context(Channels(security.grpc_channel))
        server = GrpcServer(host, 0, Health("grpc"), InFlight(), security.grpc_server, guard=security.guard)
        address = f"{host}:{server.bind()}"
        ends = await stack.enter_async_context(lane_ends(settings, security))
        jobs = await stack.enter_async_context(background())
        jobs.start(TouchAhead(ends.memory, settings.ahead_bytes).run(), name="memory ahead")
        parts = build_pool(
            settings, new_epoch(), channels, Metrics(), lambda _event: None, own_address=address, ends=ends
        )
        stack.push_async_callback(parts.lanes.close)
        add_pool_servicer(parts.servicer, server.grpc)
        await server.start()
        jobs.start(parts.watch.run(lambda: None), name="link watch")
        stack.push_async_callback(parts.pulls.close)
        stack.push_async_callback(server.stop, 0)
        answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # whatever else is printed is no answer
        print(address, file=answers)
        async for line in _lines():
            print(json.dumps(await carry_out(ServedPool(parts, address, channels), json.loads(line))), file=answers)


async def _read_line(process: asyncio.subprocess.Process, limit_s: float) -> bytes:
    assert process.stdout is not None
    async with asyncio.timeout(limit_s):
        line = await process.stdout.readline()
    if not line:
        raise RuntimeError("the pool ended")
    return line


async def _lines() -> AsyncIterator[bytes]:
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line
