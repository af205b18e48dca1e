"""A cache pool in a process of its own, which on command fills itself with blocks or pulls them from another pool."""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, get_args

from benchmarks.pool_process import TIMEOUT_S, Command, PoolProcess, ServedPool, pool_process, serve
from services.cachepool.app import PoolParts
from services.cachepool.settings import PoolSettings
from services.cachepool.store.sources import SourcedReader
from shared.ids import BlockKey, Datacenter, ModelFingerprint
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries, Source
from shared.kv.frame import seal
from shared.kv.hashing import chain_keys, root_key
from shared.kv.layout import KvLayout, LayerSpec
from shared.lanes.settings import LaneName
from shared.log import configure

LAYOUT = KvLayout(tuple(LayerSpec(None, 8, 128) for _ in range(16)), "bfloat16", 64)
"""256 KiB an entry, 4 MiB a block: an 8-billion-parameter model's layers, half of them."""


def chain(name: str, num_blocks: int) -> list[BlockEntries]:
    tokens = list(range(num_blocks * LAYOUT.block_tokens))
    keys = chain_keys(root_key(ModelFingerprint(name), LAYOUT.hash), tokens, LAYOUT.block_tokens)
    return [BlockEntries(key, LAYOUT.all_layers) for key in keys]


def pool_node(
    command: Sequence[str], dc: str, host: str, num_connections: int = 8, lanes: str = "socket,grpc"
) -> AbstractAsyncContextManager[PoolProcess]:
    """Start a pool with `command` in front (which puts it into a site); end it with the context."""
    options = ("--dc", dc, "--host", host, "--connections", str(num_connections), "--lanes", lanes)
    return pool_process(*command, sys.executable, "-m", "benchmarks.pipe.node", *options)


async def pull(
    pool: PoolParts, layout: KvLayout, blocks: Sequence[BlockEntries], source: Source, *, is_background: bool = False
) -> dict[str, Any]:
    """Be a reader that the pool pulls for; what arrives is taken and dropped."""
    changed = asyncio.Event()
    started, first_s, num_bytes = time.perf_counter(), 0.0, 0
    reader = pool.store.subscribe(layout, blocks, TIMEOUT_S, changed.set)
    try:
        pool.pulls.start(SourcedReader(reader, layout, [source], TIMEOUT_S, is_background=is_background))
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
        pool.pulls.cancel_unwanted()
    (load,) = pool.pulls.link_loads()
    return {"seconds": seconds, "first_s": first_s, "bytes": num_bytes, "goodput": load.goodput_bytes_per_s}


class _Node:
    """Carries out commands; a pull may run beside them."""

    def __init__(self) -> None:
        self._pulling: asyncio.Task[dict[str, Any]] | None = None

    async def carry_out(self, pool: ServedPool, command: Command) -> dict[str, Any]:
        match command["do"]:
            case "fill":
                return _fill(pool.parts, command["name"], command["num_blocks"])
            case "pull":
                return await _pull(pool, command)
            case "begin":
                self._pulling = asyncio.create_task(_pull(pool, command), name="a pull beside commands")
                return {}
            case "end":
                assert self._pulling is not None
                self._pulling.cancel()
                await asyncio.wait({self._pulling})
                return {}
            case "links":
                return {load.peer_dc: load._asdict() for load in pool.parts.pulls.link_loads()}
            case unknown:
                raise ValueError(f"no command {unknown!r}")


async def _pull(pool: ServedPool, command: Command) -> dict[str, Any]:
    source = Source(0, command["num_blocks"], Datacenter(command["dc"]), (command["address"],))
    is_background = command.get("is_background", False)
    blocks = chain(command["name"], command["num_blocks"])
    return await pull(pool.parts, LAYOUT, blocks, source, is_background=is_background)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dc", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--lanes", required=True, help="those between pools, the better first, with commas")
    options = parser.parse_args()
    configure("pool", level="ERROR")
    lanes = (*(lane for lane in get_args(LaneName) if lane in options.lanes.split(",")),)
    settings = PoolSettings(
        dc=options.dc,
        grpc_host=options.host,  # the socket lane listens there too
        allow_plaintext=True,  # between network namespaces of this machine
        link_connections=options.connections,
        pool_bytes=2 << 30,
        lanes=lanes,
    )
    asyncio.run(serve(options.host, settings, _Node().carry_out))


if __name__ == "__main__":
    main()
