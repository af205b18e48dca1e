"""A cache pool in a process of its own, which on command writes a prompt's entries to itself, layer by layer."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from services.cachepool.app import build_pool
from services.cachepool.settings import PoolSettings
from shared.deadline import Deadline
from shared.ids import BlockKey, new_epoch
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import seal
from shared.kv.layout import KvLayout
from shared.log import configure
from shared.metrics import Metrics
from shared.model.files.catalog import resolve
from shared.pool.calls import add_pool_servicer
from shared.pool.client import PoolClient
from shared.rpc.client import Channels
from shared.rpc.convert import MAX_BATCH_BYTES
from shared.rpc.server import GrpcServer
from shared.service.health import Health
from shared.service.lifecycle import InFlight

TIMEOUT_S = 120.0
CACHE_DIR = Path("~/.cache/prfaas").expanduser()


@dataclass(frozen=True)
class PoolProcess:
    """The parent's handle of the pool."""

    address: str
    _process: asyncio.subprocess.Process

    async def feed(self, keys: Sequence[BlockKey], seconds: float) -> None:
        """Have all layers of these blocks written within `seconds`, the lowest first; return when the last one is."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        command = {"keys": [key.hex() for key in keys], "seconds": seconds}
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        async with asyncio.timeout(seconds + TIMEOUT_S):
            if not await self._process.stdout.readline():
                raise RuntimeError("the pool ended")


@asynccontextmanager
async def pool_process(model: str, dtype: str) -> AsyncIterator[PoolProcess]:
    """Start a pool for a model's layout; end it with the context."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.engine.pool", "--model", model, "--dtype", dtype),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            line = await process.stdout.readline()
        if not line:
            raise RuntimeError("the pool did not start")
        yield PoolProcess(line.decode().strip(), process)
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()


async def _serve(layout: KvLayout) -> None:
    async with Channels() as channels:
        server = GrpcServer("127.0.0.1", 0, Health("grpc"), InFlight())
        address = f"127.0.0.1:{server.bind()}"
        pool = build_pool(PoolSettings(), new_epoch(), channels, Metrics(), lambda _event: None, own_address=address)
        add_pool_servicer(pool.servicer, server.grpc)
        await server.start()
        answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # whatever else is printed is no answer
        print(address, file=answers)
        try:
            async for line in _lines():
                command: dict[str, Any] = json.loads(line)
                keys = [BlockKey(bytes.fromhex(key)) for key in command["keys"]]
                await _feed(PoolClient(channels, address), layout, keys, command["seconds"])
                print("fed", file=answers)
        finally:
            await server.stop(0)
            await pool.pulls.close()


async def _feed(client: PoolClient, layout: KvLayout, keys: Sequence[BlockKey], seconds: float) -> None:
    """Publish zeros: what the values are costs nobody anything."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with client.publish(Deadline.after(seconds + TIMEOUT_S)) as publication:
        await publication.open(layout, [BlockEntries(key, layout.all_layers) for key in keys])
        for layer in range(layout.num_layers):
            raw = bytes(layout.entry_bytes(layer))
            at_once = max(1, MAX_BATCH_BYTES // len(raw))
            for first in range(0, len(keys), at_once):
                share = (layer + min(len(keys), first + at_once) / len(keys)) / layout.num_layers
                await asyncio.sleep(max(0.0, started + seconds * share - loop.time()))
                await publication.send([seal(key, layer, raw, Codec.RAW) for key in keys[first : first + at_once]])


async def _lines() -> AsyncIterator[bytes]:
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
    options = parser.parse_args()
    files = resolve(options.model, CACHE_DIR)
    configure("pool", level="ERROR")
    asyncio.run(_serve(files.config().kv_layout(64, options.dtype)))


if __name__ == "__main__":
    main()
