"""A pool of the hand-over, in a process of its own: it says when an entry was readable, and pulls from its peer."""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from benchmarks.handover.shapes import chain_of, layout_of
from benchmarks.pipe.node import pull
from benchmarks.pool_process import TIMEOUT_S, Command, PoolProcess, ServedPool, pool_process, serve
from services.cachepool.settings import PoolSettings
from shared.allocator import keep_freed_memory
from shared.config import load
from shared.ids import Datacenter
from shared.interpreter import take_turns_often
from shared.kv.entries import BlockEntries, Source
from shared.kv.layout import KvLayout
from shared.log import configure


def handing_pool(command: Sequence[str], dc: str, entry_bytes: int) -> AbstractAsyncContextManager[PoolProcess]:
    """Start a pool with `command` in front; end it with the context."""
    return pool_process(
        *command, sys.executable, "-m", "benchmarks.handover.pool", "--dc", dc, "--entry-bytes", str(entry_bytes)
    )


class HandingPool:
    """The child's commands."""

    def __init__(self, layout: KvLayout) -> None:
        self._layout = layout
        self._watch: asyncio.Task[float] | None = None

    async def carry_out(self, pool: ServedPool, command: Command) -> dict[str, Any]:
        blocks = chain_of(command["name"], command["num_blocks"], self._layout)
        if command["do"] == "watch":
            self._watch = asyncio.create_task(self._first_at(pool, blocks), name="watch")
            await asyncio.sleep(0)  # it has subscribed
            return {}
        if command["do"] == "watched":
            assert self._watch is not None
            return {"at": await self._watch}
        source = Source(0, len(blocks), Datacenter(command["dc"]), (command["address"],))
        return await pull(pool.parts, self._layout, blocks, source)

    async def _first_at(self, pool: ServedPool, blocks: Sequence[BlockEntries]) -> float:
        """Return when the first entry of the first layer could be read, by a clock that all processes share."""
        store, changed = pool.parts.store, asyncio.Event()
        reader = store.subscribe(self._layout, [BlockEntries(blocks[0].key, 1)], TIMEOUT_S, changed.set)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while not reader.take(1):
                    changed.clear()
                    await changed.wait()
            return time.monotonic()
        finally:
            store.close(reader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dc", required=True)
    parser.add_argument("--entry-bytes", type=int, required=True)
    options = parser.parse_args()
    keep_freed_memory()
    take_turns_often()
    configure("pool", level="ERROR")
    asyncio.run(serve("127.0.0.1", load(PoolSettings), HandingPool(layout_of(options.entry_bytes)).carry_out))


if __name__ == "__main__":
    main()
