"""A cache pool in a process of its own, which on command fills itself with blocks or pulls them from another pool."""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import ROOT
from services.cachepool.app import PoolParts, build_pool
from services.cachepool.settings import PoolSettings
from services.cachepool.store.sources import SourcedReader
from shared.ids import BlockKey, Datacenter, ModelFingerprint, new_epoch
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries, Source
from shared.kv.frame import seal
from shared.kv.hashing import chain_keys, root_key
from shared.kv.layout import KvLayout, LayerSpec
from shared.log import configure
from shared.metrics import Metrics
from shared.pool.calls import add_pool_servicer
from shared.rpc.client import Channels
from shared.rpc.server import GrpcServer
from shared.service.health import Health
from shared.service.lifecycle import InFlight

LAYOUT = KvLayout(tuple(LayerSpec(None, 8, 128) for _ in range(16)), "bfloat16", 64)
"""256 KiB an entry, 4 MiB a block: an 8-billion-parameter model's layers, half of them."""

TIMEOUT_S = 120.0


def chain(name: str, num_blocks: int) -> list[BlockEntries]:
    tokens = list(range(num_blocks * LAYOUT.block_tokens))
    keys = chain_keys(root_key(ModelFingerprint(name), LAYOUT.hash), tokens, LAYOUT.block_tokens)
    return [BlockEntries(key, LAYOUT.all_layers) for key in keys]


@dataclass(frozen=True)
class PoolNode:
    """The parent's handle."""

    address: str
    _process: asyncio.subprocess.Process

    async def ask(self, **command: Any) -> dict[str, Any]:
        """Have a command carried out; return what it answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        async with asyncio.timeout(TIMEOUT_S):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the pool ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def pool_node(command: Sequence[str], dc: str, host: str, num_connections: int = 8) -> AsyncIterator[PoolNode]:
    """Start a pool with `command` in front (which puts it into a site); end it with the context."""
    process = await asyncio.create_subprocess_exec(
        *(*command, sys.executable, "-m", "benchmarks.pipe.node", "--dc", dc, "--host", host),
        *("--connections", str(num_connections)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            line = await process.stdout.readline()
        if not line:
            raise RuntimeError("the pool did not start")
        yield PoolNode(line.decode().strip(), process)
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()


async def _pull(pool: PoolParts, name: str, num_blocks: int, source: Source, *, is_background: bool) -> dict[str, Any]:
    """Be a reader that the pool pulls for; what arrives is taken and dropped, and the pool empty again afterwards."""
    blocks, changed = chain(name, num_blocks), asyncio.Event()
    started, first_s, num_bytes = time.perf_counter(), 0.0, 0
    reader = pool.store.subscribe(LAYOUT, blocks, TIMEOUT_S, changed.set)
    try:
        pool.pulls.start(SourcedReader(reader, LAYOUT, [source], TIMEOUT_S, is_background=is_background))
        while not reader.done:
            changed.clear()
            while frames := reader.take(1 << 20):
                first_s = first_s or time.perf_counter() - started
                num_bytes += sum(len(frame.payload) for frame in frames)
            if not reader.done:
                await changed.wait()
        seconds = time.perf_counter() - started
    finally:
        pool.store.close(reader)
    (load,) = pool.pulls.link_loads()
    return {"seconds": seconds, "first_s": first_s, "bytes": num_bytes, "goodput": load.goodput_bytes_per_s}


async def _serve(host: str, settings: PoolSettings) -> None:
    async with AsyncExitStack() as stack:
        channels = await stack.enter_async_context(Channels())
        server = GrpcServer(host, 0, Health("grpc"), InFlight())
        address = f"{host}:{server.bind()}"
        pool = build_pool(settings, new_epoch(), channels, Metrics(), lambda _event: None, own_address=address)
        add_pool_servicer(pool.servicer, server.grpc)
        await server.start()
        stack.push_async_callback(server.stop, 0)
        stack.push_async_callback(pool.pulls.close)
        answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # whatever else is printed is no answer
        print(address, file=answers)
        async for line in _lines():
            print(json.dumps(await _carry_out(pool, json.loads(line))), file=answers)


async def _carry_out(pool: PoolParts, command: dict[str, Any]) -> dict[str, Any]:
    if command["do"] == "fill":
        return _fill(pool, command["name"], command["num_blocks"])
    source = Source(0, command["num_blocks"], Datacenter(command["dc"]), (command["address"],))
    is_background = command.get("is_background", False)
    return await _pull(pool, command["name"], command["num_blocks"], source, is_background=is_background)


def _fill(pool: PoolParts, name: str, num_blocks: int) -> dict[str, Any]:
    """Write a chain straight into the store: what is measured begins when it is there."""
    blocks, writer = chain(name, num_blocks), pool.store.open_writer()
    pool.store.grant(writer, LAYOUT, blocks)
    for layer in range(LAYOUT.num_layers):
        raw = os.urandom(LAYOUT.entry_bytes(layer))
        for block in blocks:
            pool.store.put(writer, seal(BlockKey(block.key), layer, raw, Codec.RAW))
    pool.store.abandon(writer)
    return {"bytes": num_blocks * LAYOUT.block_bytes}


async def _lines() -> AsyncIterator[bytes]:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dc", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--connections", type=int, required=True)
    options = parser.parse_args()
    configure("pool", level="ERROR")
    settings = PoolSettings(dc=options.dc, link_connections=options.connections, pool_bytes=2 << 30)
    asyncio.run(_serve(options.host, settings))


if __name__ == "__main__":
    main()
