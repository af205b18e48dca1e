"""Several fetches as one: what is here goes on at once, lowest layer first, whoever is late."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from shared.pool.lanes.lane import Arrived

MAX_AHEAD = 2
"""Messages that one stream may have waiting here: enough to keep it busy, and a slow reader still slows it down."""


@dataclass(eq=False)
class _Queued:
    stream: AsyncGenerator[Arrived, None]
    waiting: deque[Arrived] = field(default_factory=deque)
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_AHEAD))

    @property
    def next_layer(self) -> int:
        """The lowest layer of the next message: streams send in that order. News of missing entries go first."""
        frames = self.waiting[0].frames
        return frames[0].layer if frames else -1


async def merged(streams: Sequence[AsyncGenerator[Arrived, None]]) -> AsyncGenerator[Arrived, None]:
    """Yield the messages of all streams. The first stream that raises ends it all with its error."""
    queues = [_Queued(stream) for stream in streams]
    changed = asyncio.Event()
    tasks = [asyncio.create_task(_pump(queue, changed), name="fetch from a pool node") for queue in queues]
    try:
        while True:
            changed.clear()
            if ready := [queue for queue in queues if queue.waiting]:
                queue = min(ready, key=lambda queue: queue.next_layer)
                arrived = queue.waiting.popleft()
                queue.room.release()
                yield arrived
                del arrived  # the consumer's alone: this waits for the next one
                continue
            done = [task for task in tasks if task.done()]
            for task in done:
                task.result()
            if len(done) == len(tasks):
                return
            await changed.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(queue: _Queued, changed: asyncio.Event) -> None:
    try:
        async with aclosing(queue.stream) as arrivals:
            async for arrived in arrivals:
                await queue.room.acquire()
                queue.waiting.append(arrived)
                del arrived
                changed.set()
    finally:
        changed.set()
