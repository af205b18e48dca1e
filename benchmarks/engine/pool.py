"""A cache pool in a process of its own, which on command writes a prompt's entries to itself, layer by layer."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.pool_process import TIMEOUT_S, Command, PoolProcess, ServedPool, pool_process, serve
from services.cachepool.settings import PoolSettings
from shared.deadline import Deadline
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import seal
from shared.kv.layout import KvLayout
from shared.log import configure
from shared.model.files.catalog import resolve
from shared.pool.client import PoolClient
from shared.rpc.convert import MAX_BATCH_BYTES

CACHE_DIR = Path("~/.cache/prfaas").expanduser()


def feeding_pool(model: str, dtype: str) -> AbstractAsyncContextManager[PoolProcess]:
    """Start a pool for a model's layout; end it with the context."""
    return pool_process(sys.executable, "-m", "benchmarks.engine.pool", "--model", model, "--dtype", dtype)


async def feed(pool: PoolProcess, keys: Sequence[BlockKey], seconds: float) -> None:
    """Have all layers of these blocks written within `seconds`, the lowest first; return when the last one is."""
    await pool.ask(seconds + TIMEOUT_S, keys=[key.hex() for key in keys], seconds=seconds)


async def _carry_out(layout: KvLayout, pool: ServedPool, command: Command) -> dict[str, Any]:
    keys = [BlockKey(bytes.fromhex(key)) for key in command["keys"]]
    await _feed(PoolClient(pool.channels, pool.address), layout, keys, command["seconds"])
    return {}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
    options = parser.parse_args()
    files = resolve(options.model, CACHE_DIR)
    configure("pool", level="ERROR")
    layout = files.config().kv_layout(64, options.dtype)
    asyncio.run(serve("127.0.0.1", PoolSettings(), partial(_carry_out, layout)))


if __name__ == "__main__":
    main()
