"""Many clients on every lane against one small pool: writers, readers, cancellations, evictions, all at once."""

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import get_args

import pytest

from shared.ids import BlockKey
from shared.kv.frame import Frame
from shared.lanes.settings import LaneName
from shared.lanes.slots import SlotMemory
from shared.pool.client import PoolClient
from shared.pool.lanes.chosen import PoolLanes
from shared.rpc.client import Channels
from tests.support.large import LARGE, Reading, large_frames, placed_or_sent
from tests.support.ledger import Ledger, ends_of, held
from tests.support.pools import lanes_in_use, serving, soon
from tests.support.samples import keys, wanting

CHAINS = [keys(("busy", number), 12) for number in range(30)]
"""Of which the pool holds a third."""
POOL_BYTES = 12 << 20
NUM_STEPS = 40
NUM_CLIENTS = 4  # of each lane


class Busy:
    """One client that does one thing after the other, some of them not to their end."""

    def __init__(self, client: PoolClient, seed: object) -> None:
        self._client = client
        self._random = random.Random(repr(seed))
        self.num_written = self.num_read = self.num_cancelled = 0

    async def run(self) -> None:
        for _ in range(NUM_STEPS):
            step = self._write if self._random.random() < 0.5 else self._read
            task = asyncio.create_task(step(self._random.choice(CHAINS)))
            if self._random.random() < 0.3:
                for _ in range(self._random.randrange(40)):
                    await asyncio.sleep(0)
                self.num_cancelled += task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()

    async def _write(self, names: list[BlockKey]) -> None:
        async with self._client.publish(soon()) as publication:
            grant = await publication.open(LARGE, wanting(names, LARGE.all_layers))
            masks = dict(zip(names, grant.granted, strict=True))
            frames = [sent for sent in large_frames(names) if masks[sent.key] >> sent.layer & 1]
            await placed_or_sent(publication, frames)
            self.num_written += len(frames)

    async def _read(self, names: list[BlockKey]) -> None:
        async def then(frames: list[Frame]) -> None:
            await asyncio.sleep(0)

        self.num_read += len((await Reading(self._client, names, wait_s=0.05).run(then)).got)


async def test_nothing_is_left_and_nothing_was_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_in_use, "folder", tmp_path / "lanes")
    async with AsyncExitStack() as stack:
        channels = await stack.enter_async_context(Channels())
        west = await stack.enter_async_context(serving(channels, pool_bytes=POOL_BYTES))
        clients = []
        names: tuple[LaneName, ...] = get_args(LaneName)
        for name in names:
            lanes = PoolLanes(channels, (name, "grpc"), SlotMemory(32 << 20, shared=False), num_connections=2)
            stack.push_async_callback(lanes.close)
            assert (await lanes.to(west.address)).name == name
            client = PoolClient(channels, west.address, lanes=lanes)
            clients += [Busy(client, (name, number)) for number in range(NUM_CLIENTS)]
        ledger = await Ledger.of(west)
        await asyncio.gather(*(client.run() for client in clients))
        for number in range(len(names)):
            of_lane = clients[number * NUM_CLIENTS : (number + 1) * NUM_CLIENTS]
            assert all(sum(getattr(client, count) for client in of_lane) for count in ("num_written", "num_read"))
            assert west.count("lane_sent_bytes_total", lane=names[number]) > 0
        assert sum(client.num_cancelled for client in clients) > 20
        assert west.count("evicted_blocks_total") > 0
        await ledger.balanced()
        assert (held(west).num_taken, held(west).num_held, held(west).num_spare) == (0, 0, 0)
        assert west.count("corrupt_frames_total", source="writer") == 0
        assert ends_of(west).memory.num_kept == west.pool.store.stats.num_entries
