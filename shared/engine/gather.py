"""Messages of a stream, together where their consumer is busy: what costs much for each call pays for many then."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from shared.pool.lanes.lane import Arrived


async def gathered(stream: AsyncGenerator[Arrived, None], max_bytes: int) -> AsyncGenerator[list[Arrived], None]:
    """Yield the messages that have come since the last time, at least one, in their order; closes the stream.

    The stream is read ahead while the consumer is busy, until about `max_bytes` of payload wait. Raises what the stream
    raises, after all that came before.
    """
    waiting: list[Arrived] = []
    changed = asyncio.Event()
    has_room = asyncio.Event()

    async def read() -> None:
        num_bytes = 0
        async with aclosing(stream) as arrivals:
            async for arrived in arrivals:
                num_bytes = num_bytes + _size(arrived) if waiting else _size(arrived)
                waiting.append(arrived)
                changed.set()
                if num_bytes >= max_bytes:
                    has_room.clear()
                    await has_room.wait()

    reading = asyncio.create_task(read(), name="reading ahead")
    reading.add_done_callback(lambda _task: changed.set())
    try:
        while True:
            if waiting:
                taken, waiting[:] = list(waiting), []
                has_room.set()
                yield taken
            elif reading.done():
                reading.result()
                return
            else:
                changed.clear()
                await changed.wait()
    finally:
        reading.cancel()
        await asyncio.wait({reading})


def _size(arrived: Arrived) -> int:
    return sum(len(frame.payload) for frame in arrived.frames)
