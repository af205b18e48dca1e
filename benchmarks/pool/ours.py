"""The pool as the product runs it: the process `services.cachepool` with its broker, and the engines' `PoolClient`.

Entries are sealed by the client, and each is verified by the client when it is got; a pool verifies what it receives.
What is put lies in memory already, in the codec `raw`. An engine's calls move it: into the room that the lane gives it
is copied and digested in one call.

A get ends with verified bytes in memory of the client's own, on every lane. From memory that the pool shares they are
copied as engines copy them into their pages. Messages and sockets end in the client's memory already, as those of the
bare stream and of the peers do: there they are verified where they lie.
"""

import asyncio
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, aclosing, closing
from itertools import count, cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.pool.lines import ROOT, open_answers, serve
from benchmarks.pool.load import Payloads, PoolLoad
from shared.allocator import keep_freed_memory
from shared.config import load as load_settings
from shared.deadline import Deadline
from shared.ids import BlockKey
from shared.interpreter import take_turns_often
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame, headers_of, raw_headers, seal_all, verify_all
from shared.kv.layout import KvLayout, LayerSpec
from shared.kv.payloads import copy_in_sealed, copy_out
from shared.lanes.settings import LaneSettings
from shared.lanes.shared_memory.attachment import Attachment
from shared.lanes.slots import SlotMemory
from shared.pool.client import PoolClient
from shared.pool.lanes.chosen import PoolLanes
from shared.pool.lanes.mapped import MappedLane
from shared.rpc.client import Channels
from shared.service.lifecycle import new_event_loop

LIMIT_S = 120.0
PAGES_BYTES = 64 << 20
"""Of the client, to put from and to get into: beyond any cache, as an engine's are."""
NUM_PARTS = 2
"""Of an entry in pages: keys and values lie apart."""
ROOM_BYTES = 32 << 20
"""Asked for at a time, as engines do."""
# Layouts whose entries have these sizes, in bfloat16 and blocks of 64 tokens: (layers, KV heads, head size).
SHAPES = {
    4 * 1024: (1, 1, 16),  # for lookups: blocks of one small entry
    48 * 1024: (30, 3, 64),  # SmolLM2-135M
    64 * 1024: (18, 1, 256),  # Gemma 3 270M
    1024 * 1024: (8, 32, 128),  # entries of Llama 2 7B
    4 * 1024 * 1024: (2, 128, 128),
}


def layout_of(entry_bytes: int) -> KvLayout:
    num_layers, num_heads, head_dim = SHAPES[entry_bytes]
    layout = KvLayout((LayerSpec(None, num_heads, head_dim),) * num_layers, "bfloat16")
    assert layout.entry_bytes(0) == entry_bytes
    return layout


def blocks_of(load: PoolLoad, layout: KvLayout) -> list[BlockEntries]:
    """Return a chain with at least the load's entries in whole blocks."""
    num_blocks = -(-load.num_entries // layout.num_layers)
    names = (f"{load.name} {load.entry_bytes} {number}" for number in range(num_blocks))
    keys = (hashlib.sha256(name.encode()).digest() for name in names)
    return [BlockEntries(BlockKey(key), layout.all_layers) for key in keys]


def run_server() -> None:
    """Start broker and pool, say where the pool is, end both when our input ends."""
    answers = open_answers()
    with ExitStack() as stack:
        kafka = f"127.0.0.1:{_free_port()}"
        command = [sys.executable, "-m", "deploy.devbroker", "--port", kafka.split(":")[1]]
        stack.enter_context(_process(command))
        environ = {"PRFAAS_KAFKA": kafka, "PRFAAS_GRPC_PORT": "0", "PRFAAS_HTTP_PORT": "0", "PYTHONUNBUFFERED": "1"}
        pool = stack.enter_context(_process([sys.executable, "-m", "services.cachepool"], **environ))
        assert pool.stdout is not None
        address = next(address for line in pool.stdout if (address := _ready_address(line)))
        threading.Thread(target=pool.stdout.read, daemon=True).start()  # or its log would fill the pipe
        print(json.dumps({"ready": {"address": address, "pid": pool.pid}}), file=answers)
        sys.stdin.read()


def _process(command: list[str], **environ: str) -> "_Ended":
    return _Ended(command, cwd=ROOT, env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True)


class _Ended(subprocess.Popen[str]):
    """A process that ends with its context."""

    def __exit__(self, *exc: Any) -> None:
        self.terminate()
        try:
            self.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        super().__exit__(*exc)


def _ready_address(line: str) -> str | None:
    event = json.loads(line) if line.startswith("{") else {}
    address: str | None = event.get("address") if event.get("event") == "cachepool_ready" else None
    return address


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class OurClient:
    def __init__(self, address: str) -> None:
        self._runner = asyncio.Runner(loop_factory=new_event_loop)
        self._channels = Channels()
        settings = load_settings(LaneSettings)
        self._lanes = PoolLanes(
            self._channels,
            settings.lanes,
            SlotMemory(settings.lane_bytes, shared=False),
            num_connections=settings.lane_connections,
            verifies=True,
            on_attached=self._on_attached,
        )
        self._pool = PoolClient(self._channels, address, lanes=self._lanes)
        self._payloads = Payloads()
        self._numbers = count()
        self._pages = np.frombuffer(os.urandom(PAGES_BYTES), np.uint8).copy()

    def _on_attached(self, attachment: Attachment) -> None:
        """Map the pool's memory ahead, as engines do."""
        self._mapping = asyncio.get_running_loop().create_task(attachment.keep_mapped())

    def close(self) -> None:
        self._runner.run(self._lanes.close())
        self._runner.run(self._channels.close())
        self._runner.close()

    def do(self, command: dict[str, Any]) -> dict[str, Any]:
        load = PoolLoad.of(command)
        work = {"put": self._put, "get": self._get, "first_frame": self._first_frame, "lookup": self._lookup}
        started = time.monotonic()
        result = self._runner.run(_within(work[command["do"]](load)))
        return {"started": started, "ended": time.monotonic(), **result}

    async def _put(self, load: PoolLoad) -> dict[str, Any]:
        layout = layout_of(load.entry_bytes)
        blocks = blocks_of(load, layout)
        payloads = cycle(self._payloads.of(load.entry_bytes))
        async with self._pool.publish(Deadline.after(LIMIT_S)) as publication:
            grant = await publication.open(layout, blocks)
            assert grant.granted == [layout.all_layers] * len(blocks)
            for keys, layer in _batches(blocks, layout, max(1, ROOM_BYTES // load.entry_bytes)):
                while keys:
                    room = await publication.room(keys, load.entry_bytes)
                    slots = [slot for slot in room if slot is not None]  # of the first keys
                    if slots:
                        few = keys[: len(slots)]
                        await publication.send(self._placed(load, layer, few, slots))
                    else:
                        few = keys[: load.entries_per_message]
                        await publication.send(seal_all(few, layer, [next(payloads) for _ in few]))
                    keys = keys[len(few) :]
        return {"bytes": len(blocks) * layout.block_bytes}

    def _placed(self, load: PoolLoad, layer: int, keys: list[BlockKey], slots: list[memoryview]) -> list[Frame]:
        """Copy entries into slots and seal them there, as an engine's stager does."""
        rows, numbers = self._next_pages(load.entry_bytes, len(keys))
        checksums = copy_out(rows, numbers, slots, raw_headers(keys, layer, load.entry_bytes))
        return seal_all(keys, layer, slots, checksums)

    def _next_pages(self, entry_bytes: int, num_entries: int) -> tuple[NDArray[np.uint8], list[int]]:
        """Return the pages as entries, `[parts, all entries, bytes of a part]`, and which of them come next."""
        num_all = len(self._pages) // entry_bytes
        rows = self._pages[: num_all * entry_bytes].reshape(NUM_PARTS, num_all, entry_bytes // NUM_PARTS)
        return rows, [next(self._numbers) % num_all for _ in range(num_entries)]

    async def _get(self, load: PoolLoad) -> dict[str, Any]:
        layout = layout_of(load.entry_bytes)
        blocks = blocks_of(load, layout)
        num_entries = num_missing = num_corrupt = 0
        is_mapped = isinstance(await self._lanes.to(self._pool.address), MappedLane)
        async with aclosing(self._pool.fetch(layout, blocks, (), 0.0, Deadline.after(LIMIT_S))) as arrivals:
            async for arrived in arrivals:
                if not arrived.is_verified:
                    assert all(self._verified(load, arrived.frames, is_mapped=is_mapped)), "corrupt"
                num_entries += len(arrived.frames)
                num_missing += sum(layers.bit_count() for _, layers in arrived.missing)
                num_corrupt += sum(layers.bit_count() for _, layers in arrived.corrupt)
        assert num_entries == len(blocks) * layout.num_layers, f"{num_missing} entries missing, {num_corrupt} corrupt"
        return {"bytes": num_entries * load.entry_bytes}

    def _verified(self, load: PoolLoad, frames: list[Frame], *, is_mapped: bool) -> list[bool]:
        """Verify frames, of mapped memory on their way into pages; return which are intact."""
        if not is_mapped:
            return verify_all(frames)
        rows, numbers = self._next_pages(load.entry_bytes, len(frames))
        payloads, checksums = [frame.payload for frame in frames], [frame.checksum for frame in frames]
        return copy_in_sealed(rows, numbers, payloads, headers_of(frames), checksums)

    async def _first_frame(self, load: PoolLoad) -> dict[str, Any]:
        """Seconds from asking for all of a chain to its first verified entries.

        The rest is taken too: a fetch that is broken off leaves the pool a message to write, which the next waits for.
        """
        layout = layout_of(load.entry_bytes)
        blocks = blocks_of(load, layout)
        seconds = []
        for _ in range(30):
            started = time.perf_counter()
            async with aclosing(self._pool.fetch(layout, blocks, (), 0.0, Deadline.after(LIMIT_S))) as arrivals:
                first = await anext(arrivals)
                assert first.is_verified or all(verify_all(first.frames)), "corrupt"
                seconds.append(time.perf_counter() - started)
                async for _ in arrivals:
                    pass
        return {"bytes": 0, "median_s": statistics.median(seconds)}

    async def _lookup(self, load: PoolLoad) -> dict[str, Any]:
        """Seconds of one lookup of the chain's keys, all of which are there."""
        layout = layout_of(load.entry_bytes)
        keys = [key for key, _ in blocks_of(load, layout)]
        seconds = []
        for _ in range(30):
            started = time.perf_counter()
            present = await self._pool.lookup(keys, Deadline.after(LIMIT_S))
            seconds.append(time.perf_counter() - started)
            assert present == [layout.all_layers] * len(keys)
        return {"bytes": 0, "median_s": statistics.median(seconds)}


def _batches(blocks: list[BlockEntries], layout: KvLayout, size: int) -> Iterator[tuple[list[BlockKey], int]]:
    """Yield what room is asked for at a time, layer by layer, as an engine sends it."""
    for layer in range(layout.num_layers):
        for first in range(0, len(blocks), size):
            yield [key for key, _ in blocks[first : first + size]], layer


async def _within(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    async with asyncio.timeout(LIMIT_S):
        return await work


if __name__ == "__main__":
    keep_freed_memory()
    take_turns_often()
    if sys.argv[1] == "server":
        run_server()
    else:
        with closing(OurClient(sys.argv[3])) as client:
            serve({}, client.do)
