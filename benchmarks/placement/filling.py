"""An index of many pairs, filled and asked over the real path, and what each call took."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from benchmarks.placement.gateway import Gateway, runs
from shared.bus.events import unpack_keys
from shared.bus.kafka import Record
from shared.ids import WorkerId

NUM_HOLDERS = 64
HOLDERS = [WorkerId(f"pool-{number:02}") for number in range(NUM_HOLDERS)]
PROMPT_BLOCKS = 2048


class Took(NamedTuple):
    """What a call took. On a busy machine the CPU's time says more; the targets are for the clock's."""

    wall_s: float
    cpu_s: float

    @classmethod
    def since(cls, start: "Took") -> "Took":
        return cls(time.perf_counter() - start.wall_s, time.thread_time() - start.cpu_s)


def now() -> Took:
    return Took(time.perf_counter(), time.thread_time())


@dataclass
class FilledPrompt:
    """Keys back to back, and where its blocks lie: all on one holder (and its copies), or dealt out."""

    keys: bytes
    kind: str
    home: int

    def parts(self) -> Iterator[tuple[int, bytes]]:
        if self.kind == "one pool":
            yield self.home, self.keys
            return
        blocks = np.frombuffer(self.keys, np.uint8).reshape(-1, 32)
        for holder in range(NUM_HOLDERS):
            yield holder, blocks[blocks[:, 31] % NUM_HOLDERS == holder].tobytes()


@dataclass
class Index:
    """An index that is filled and asked over the real path, with what was measured on the way."""

    gateway: Gateway
    copies: int
    rng: np.random.Generator
    num_pairs: int = 0
    took: list[Took] = field(default_factory=list)

    async def store(self, holder: int, keys: bytes) -> None:
        for copy in range(self.copies):
            name = HOLDERS[(holder + 17 * copy) % NUM_HOLDERS]
            await self.take(self.gateway.placed(name, runs(keys)))
            self.num_pairs += len(keys) // 32

    async def take(self, record: Record) -> None:
        started = now()
        await self.gateway.feed.take(record)
        self.took.append(Took.since(started))

    async def grow(self) -> None:
        """Wait for the memory of the next table, if one is wanted, and beat until all pairs have moved there."""
        while self.gateway.index.room_wanted is not None:  # noqa: ASYNC110 - only a benchmark waits for it
            await asyncio.sleep(0.01)
        while self.gateway.index.is_moving:
            await self.take(self.gateway.placed(HOLDERS[0]))

    def settle(self) -> None:
        started = now()
        self.gateway.index.settle()
        self.took.append(Took.since(started))

    def match(self, packed: bytes) -> Took:
        keys = unpack_keys(packed)
        started = now()
        self.gateway.index.held(keys, 0.0)
        return Took.since(started)


async def fill(index: Index, prompts: list[FilledPrompt], num_pairs: int) -> list[Took]:
    """Fill the index, prompts in between. Returns the times of matches meanwhile: a table is often half moved then."""
    waiting = list(prompts)
    num_steps = num_pairs // index.copies // PROMPT_BLOCKS - len(prompts)  # a prompt has the blocks of a step
    every = num_steps // len(prompts)
    matches = []
    step = 0
    while index.num_pairs < num_pairs:
        if waiting and step % every == 0:
            for holder, keys in waiting.pop().parts():
                await index.store(holder, keys)
        await index.store(int(index.rng.integers(NUM_HOLDERS)), index.rng.bytes(32 * PROMPT_BLOCKS))
        if step % 8 == 0:
            matches.append(index.match(prompts[step // 8 % len(prompts)].keys))
        step += 1
    await index.grow()
    assert not waiting, "the prompts are a part of what is filled in"
    return matches
