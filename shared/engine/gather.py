"""Messages of a stream, together where their consumer is busy: what costs much for each call pays for many then."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable

from shared.engine.thread import end_all
from shared.kv.entries import BlockEntries
from shared.pool.lanes.lane import Arrived
from shared.pool.outstanding import Outstanding


async def gathered(
    stream: AsyncIterator[Arrived], max_bytes: int, wanted: Iterable[BlockEntries]
) -> AsyncGenerator[list[Arrived], None]:
    """Yield the messages that have come since the last time, at least one, in their order.

    The stream is read ahead while the consumer is busy, until about `max_bytes` of payload wait, and not any further
    once all that is `wanted` has come or was denied. It is still open then, and what it lent is still the consumer's.
    Who owns it closes it. Raises what the stream raises, after all that came before.
    """
    waiting: list[Arrived] = []
    changed = asyncio.Event()
    has_room = asyncio.Event()

    async def read() -> None:
        num_bytes, left = 0, Outstanding(wanted)
        while not left.is_empty and (arrived := await anext(stream, None)) is not None:
            num_bytes = num_bytes + _size(arrived) if waiting else _size(arrived)
            left.remove(arrived)
            waiting.append(arrived)
            del arrived
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
                del taken  # its payloads are nobody's while this waits
            elif reading.done():
                reading.result()
                return
            else:
                changed.clear()
                await changed.wait()
    finally:
        await end_all(reading)


def _size(arrived: Arrived) -> int:
    return sum(len(frame.payload) for frame in arrived.frames)
