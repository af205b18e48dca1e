"""An engine's end of the hand-over, in a process of its own: real publications and fetches over pages, no model."""

import asyncio
import sys
import time
from collections.abc import Coroutine
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from benchmarks.handover.shapes import keys_of, layout_of
from benchmarks.pool.lines import serve
from shared.allocator import keep_freed_memory
from shared.config import load
from shared.deadline import Deadline
from shared.engine.batching import Ready
from shared.engine.fetch import PageFetch
from shared.engine.publish import PagePublisher
from shared.engine.stage import Arrival, select_stager
from shared.engine.thread import WorkThread
from shared.engine.transfer import PageTransfer, TransferMetrics
from shared.ids import Datacenter
from shared.interpreter import take_turns_often
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries, Source
from shared.lanes.settings import LaneSettings
from shared.log import configure
from shared.metrics import Metrics
from shared.model.pages.kv import PagedKv
from shared.pool.client import PoolClient
from shared.pool.lanes.chosen import engine_lanes
from shared.rpc.client import Channels
from shared.security.credentials import security_of

LIMIT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class HandingSettings(LaneSettings):
    """Both ends show the certificate of a decode worker, which may publish and fetch."""

    service: ClassVar[str] = "decode"


class HandingEngine:
    """Pages of one prompt, full of noise, which goes to the pool under ever new keys or is overwritten from there."""

    def __init__(self, address: str, device: torch.device, entry_bytes: int, num_blocks: int) -> None:
        layout = layout_of(entry_bytes)
        self._runner = asyncio.Runner()
        settings = load(HandingSettings)
        security = security_of(settings)
        self._channels = Channels(security.grpc_channel)
        self._channels.expect(address, settings.dc)
        self._lanes = engine_lanes(settings, self._channels, security.lane_client)
        self._pool = PoolClient(self._channels, address, lanes=self._lanes)
        self._kv = PagedKv(layout, num_blocks, layout.block_tokens, device)
        reservation = self._kv.reserve([], num_blocks * layout.block_tokens)
        assert reservation is not None
        self._reservation = reservation
        self._num_blocks = num_blocks
        self._transfer = PageTransfer(self._kv, WorkThread("copier"), TransferMetrics(Metrics()), select_stager(device))
        for layer in range(layout.num_layers):
            self._kv.blocks_of(layer).normal_()

    def close(self) -> None:
        self._runner.run(self._lanes.close())
        self._runner.run(self._channels.close())
        self._runner.close()
        self._transfer.copier.close()

    def do(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["do"] == "stage":
            return self._stage()
        work = {"publish": self._publish, "fetch": self._fetch}[command["do"]]
        return self._runner.run(_within(work(command)))

    async def _publish(self, command: dict[str, Any]) -> dict[str, Any]:
        """Publish all layers as if they had all been computed; return when the pool has stored them."""
        layout, transfer = self._kv.layout, self._transfer
        keys = keys_of(command["name"], self._num_blocks)
        started = time.monotonic()
        async with self._pool.publish(Deadline.after(LIMIT_S)) as publication:
            grant = await publication.open(layout, [BlockEntries(key, layout.all_layers) for key in keys])
            publisher = PagePublisher(publication, transfer, self._reservation, keys, Codec.RAW)
            for block, layers in enumerate(grant.granted):
                publisher.grant(block, layers)
            for layer in range(layout.num_layers):
                publisher.emit(Ready(layer, 0, self._num_blocks, transfer.stager.mark()))
            publisher.finish()
            await publisher.run()
        ended = time.monotonic()
        assert publisher.num_entries_sent == self._num_blocks * layout.num_layers, "not all of it was ours"
        return {"started": started, "ended": ended, "bytes": self._num_blocks * layout.block_bytes}

    async def _fetch(self, command: dict[str, Any]) -> dict[str, Any]:
        """Fetch a chain into the pages; `source` is a pool in another datacenter that has it, or will."""
        layout = self._kv.layout
        keys = keys_of(command["name"], self._num_blocks)
        landed_at: list[float] = []
        wanted = dict.fromkeys(range(self._num_blocks), layout.all_layers)
        fetch = PageFetch(self._transfer, self._reservation, keys, wanted, lambda: landed_at.append(time.monotonic()))
        source = command.get("source")
        sources = [Source(0, len(keys), Datacenter("east"), (source,))] if source else []
        started = time.monotonic()
        await fetch.run(self._pool, sources, LIMIT_S, Deadline.after(LIMIT_S))
        ended = time.monotonic()
        assert not fetch.outstanding, "not all of it came"
        size = self._num_blocks * layout.block_bytes
        return {"started": started, "ended": ended, "first_at": landed_at[0], "bytes": size}

    def _stage(self) -> dict[str, Any]:
        """Copy all pages to the host, and back; no pool takes part."""
        layout, stager = self._kv.layout, self._transfer.stager
        numbers = [self._kv.block_number(0, self._reservation, block) for block in range(self._num_blocks)]
        started, out_s = time.monotonic(), 0.0
        for layer in range(layout.num_layers):
            blocks = self._kv.blocks_of(layer)
            began = time.monotonic()
            raws = list(stager.stage(stager.mark(), blocks, numbers))
            out_s += time.monotonic() - began
            stager.land([Arrival(raw, blocks, number) for raw, number in zip(raws, numbers, strict=True)])
        in_s = time.monotonic() - started - out_s
        return {"out_s": out_s, "in_s": in_s, "bytes": self._num_blocks * layout.block_bytes}


async def _within(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    async with asyncio.timeout(LIMIT_S):
        return await work


if __name__ == "__main__":
    keep_freed_memory()
    take_turns_often()
    configure("engine", level="ERROR")
    torch.set_num_threads(1)
    address, device, entry_bytes, num_blocks = sys.argv[1:]
    with closing(HandingEngine(address, torch.device(device), int(entry_bytes), int(num_blocks))) as engine:
        serve({}, engine.do)
