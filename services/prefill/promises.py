"""Blocks that are on their way into this worker's device cache, so that a second prompt waits for them, once."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from shared.deadline import Deadline
from shared.engine.urgency import Urgency
from shared.errors import Overloaded
from shared.ids import BlockKey


class Promise:
    """One prompt's blocks; the leading `num_kept` of them are in the device cache already. Made by `Promises`."""

    def __init__(self, keys: Sequence[BlockKey], urgency: Urgency) -> None:
        self.keys = keys
        self.urgency = urgency
        self.num_kept = 0
        self.ended = False
        self._changed = asyncio.Event()

    def keep(self, num_blocks: int) -> None:
        """Say that the leading `num_blocks` blocks can be found in the device cache by their keys."""
        if num_blocks > self.num_kept:
            self.num_kept = num_blocks
            self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    async def reached(self, num_blocks: int) -> None:
        """Wait until so many blocks are kept, or nobody works on them any more."""
        while self.num_kept < num_blocks and not self.ended:
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Promises:
    """Lets of all prompts that share a prefix only one produce it; the others wait and then find it on the device.

    A block is promised by one prompt at most. A prompt that waits has promised nothing, so that none waits in a circle,
    and lends its urgency to the one it waits for. When that one fails, the next in line promises the blocks.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._owners: dict[BlockKey, Promise] = {}
        self.num_waiting = 0

    @asynccontextmanager
    async def turn(self, keys: Sequence[BlockKey], urgency: Urgency, deadline: Deadline) -> AsyncIterator[Promise]:
        """Wait while others are at any of `keys` (a chain), then promise those for the length of the block.

        Raises `Overloaded` when too many wait, `DeadlineExceeded`.
        """
        if self._shared(keys) is not None:
            await self._wait(keys, urgency, deadline)
        promise = Promise(keys, urgency)
        for key in keys:
            self._owners.setdefault(key, promise)  # others hold what they have kept, for as long as they are here
        try:
            yield promise
        finally:
            for key in keys:
                if self._owners.get(key) is promise:
                    del self._owners[key]
            promise.end()

    def num_promised(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading blocks of `keys` are in the hands of others: they compute those."""
        return next((i for i, key in enumerate(keys) if key not in self._owners), len(keys))

    async def _wait(self, keys: Sequence[BlockKey], urgency: Urgency, deadline: Deadline) -> None:
        if self.num_waiting >= self._max_waiting:
            raise Overloaded(f"{self.num_waiting} prompts are waiting for others with the same beginning already")
        self.num_waiting += 1
        try:
            async with deadline.scope("waiting for another prompt with the same beginning"):
                while (shared := self._shared(keys)) is not None:
                    owner, num_blocks = shared
                    with urgency.lend(to=owner.urgency):
                        await owner.reached(num_blocks)
        finally:
            self.num_waiting -= 1

    def _shared(self, keys: Sequence[BlockKey]) -> tuple[Promise, int] | None:
        """Return who is at the first block of `keys` that is not kept yet, and up to which block they share it."""
        owner: Promise | None = None
        for i, key in enumerate(keys):
            found = self._owners.get(key)
            if owner is not None and found is not owner:
                return owner, i
            if found is not None and found.num_kept <= i:
                owner = found
        return None if owner is None else (owner, len(keys))
