"""The pool's object tier in a local folder, beside bare obstore calls that move objects of the same size.

One process, blocks of SmolLM2's size (30 layers, 1.4 MiB) with random content. Written: from the first entry stored
until the last object is there. Read: from the reader's subscription until it has every entry, checked, as a request
of 4,096 tokens would; and until it has the first layer of every block. The files were written just before, so reads
come from the page cache: what is measured is the way through the pool, not the disk.
"""

import argparse
import asyncio
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Report, Row, Spread, at_most
from services.cachepool.settings import PoolSettings
from services.cachepool.store.sources import SourcedReader
from services.cachepool.store.store import Store
from services.cachepool.tiers.bucket import open_client
from services.cachepool.tiers.opening import open_tier
from services.cachepool.tiers.tier import ObjectTier
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame, seal
from shared.kv.layout import KvLayout, LayerSpec
from shared.metrics import Metrics

LAYOUT = KvLayout((LayerSpec(None, 3, 64),) * 30, "bfloat16", 64)
NUM_BLOCKS, NUM_BLOCKS_QUICK = 64, 16  # 64 of 64 tokens: a prompt of 4,096
WRITES_AT_A_TIME, READS_AT_A_TIME = 4, 8  # as the pool does it: by default, and for one reader
WAIT_S = 60.0


@dataclass
class Figures:
    """Of one repetition."""

    write_mb_s: float
    bare_write_mb_s: float
    read_mb_s: float
    bare_read_mb_s: float
    first_layer_ms: float
    recovered_per_s: float
    lag_ms: float  # the latest that the event loop woke a sleeper while all this went on


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Store, ObjectTier]]:
    """A store with an object tier, and its loops."""
    settings = PoolSettings(object_url=folder.as_uri(), pool_bytes=1 << 30)
    store = Store(settings.pool_bytes, time.monotonic)
    tier = open_tier(settings, store, Metrics())
    store.listen(on_settled=tier.writes.note)
    loops = asyncio.create_task(tier.run())
    try:
        yield store, tier
    finally:
        loops.cancel()
        await asyncio.wait({loops})


async def write(store: Store, tier: ObjectTier, frames: Sequence[Frame], keys: Sequence[BlockKey]) -> None:
    writer = store.open_writer()
    store.grant(writer, LAYOUT, [BlockEntries(key, LAYOUT.all_layers) for key in keys])
    for number, frame in enumerate(frames):
        store.put(writer, frame)
        if number % LAYOUT.num_layers == 0:
            await asyncio.sleep(0)
    store.abandon(writer)
    unwritten = await tier.writes.flush(WAIT_S)
    assert unwritten == 0, "blocks were not written"


async def read(store: Store, tier: ObjectTier, keys: Sequence[BlockKey]) -> float:
    """Return the seconds until layer 0 of all blocks was there."""
    changed = asyncio.Event()
    started = time.perf_counter()
    reader = store.subscribe(LAYOUT, [BlockEntries(key, LAYOUT.all_layers) for key in keys], WAIT_S, changed.set)
    tier.start(SourcedReader(reader, LAYOUT, (), WAIT_S))
    left_in_first, first_s = len(keys), 0.0
    while not reader.done:
        changed.clear()
        frames = reader.take(1 << 20)
        for frame in frames:
            left_in_first -= frame.layer == 0
            if left_in_first == 0 and not first_s:
                first_s = time.perf_counter() - started
        if not frames:
            await changed.wait()
    store.close(reader)
    return first_s


async def bare(folder: Path, num_objects: int, content: bytes) -> tuple[float, float]:
    """Return the seconds in which obstore writes and reads objects of this content."""
    client = open_client(folder.as_uri(), WAIT_S)
    writes, reads = asyncio.Semaphore(WRITES_AT_A_TIME), asyncio.Semaphore(READS_AT_A_TIME)

    async def put(name: str) -> None:
        async with writes:
            await client.put_async(name, content, use_multipart=False)

    async def get(name: str) -> None:
        async with reads:
            await client.get_range_async(name, start=0, length=len(content))

    started = time.perf_counter()
    await asyncio.gather(*(put(f"{number % 256:02x}/{number}") for number in range(num_objects)))
    written = time.perf_counter()
    await asyncio.gather(*(get(f"{number % 256:02x}/{number}") for number in range(num_objects)))
    return written - started, time.perf_counter() - written


async def worst_lag_ms(over: asyncio.Event) -> float:
    worst = 0.0
    while not over.is_set():
        started = time.perf_counter()
        await asyncio.sleep(0.001)
        worst = max(worst, time.perf_counter() - started - 0.001)
    return worst * 1000


async def once(num_blocks: int) -> Figures:
    keys = [BlockKey(hashlib.sha256(f"block {number}".encode()).digest()) for number in range(num_blocks)]
    raw = os.urandom(LAYOUT.entry_bytes(0))
    frames = [seal(key, layer, raw, Codec.RAW) for key in keys for layer in range(LAYOUT.num_layers)]
    mb = megabytes(num_blocks)
    over = asyncio.Event()
    lag = asyncio.create_task(worst_lag_ms(over))
    with tempfile.TemporaryDirectory() as name:
        async with running(Path(name) / "tier") as (store, tier):
            await tier.recovery.done.wait()
            started = time.perf_counter()
            await write(store, tier, frames, keys)
            write_s = time.perf_counter() - started
        async with running(Path(name) / "tier") as (store, tier):
            started = time.perf_counter()
            await tier.recovery.done.wait()
            recovery_s = time.perf_counter() - started
            started = time.perf_counter()
            first_s = await read(store, tier, keys)
            read_s = time.perf_counter() - started
        over.set()
        lag_ms = await lag
        bare_write_s, bare_read_s = await bare(Path(name) / "bare", num_blocks, raw * LAYOUT.num_layers)
    return Figures(
        *(mb / write_s, mb / bare_write_s, mb / read_s, mb / bare_read_s),
        *(first_s * 1000, num_blocks / recovery_s, lag_ms),
    )


def measure(options: argparse.Namespace) -> Report:
    num_blocks, repetitions = (NUM_BLOCKS_QUICK, 1) if options.quick else (NUM_BLOCKS, 5)
    figures = [asyncio.run(once(num_blocks)) for _ in range(repetitions)]
    row: Row = {"blocks": num_blocks, "mb": round(megabytes(num_blocks), 1)}
    spreads = {name: Spread.of([getattr(f, name) for f in figures]) for name in Figures.__annotations__}
    for name, spread in spreads.items():
        row |= spread.cells(name, 1)
    first = Spread.of([f.first_layer_ms * f.read_mb_s / megabytes(num_blocks) / 1000 for f in figures])
    return Report(
        rows=[row],
        checks=[
            at_most("first layer of all blocks, of the time of all layers", first.median, 0.5, "x"),
            at_most("event loop held up", spreads["lag_ms"].median, 50, "ms"),
        ],
        settings={"block_bytes": LAYOUT.block_bytes, "repetitions": repetitions},
    )


def megabytes(num_blocks: int) -> float:
    return num_blocks * LAYOUT.block_bytes / 1e6


if __name__ == "__main__":
    sys.exit(harness.main("tiers", measure, description=__doc__))
