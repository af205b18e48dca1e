"""Memory for the next table of the placement index, made ready beside the event loop."""

import asyncio

from services.gateway.placement.index import PlacementIndex
from services.gateway.placement.table.table import BUCKET_BYTES, PairTable

TOUCH_BUCKETS = (16 << 20) // BUCKET_BYTES
"""Buckets whose memory is made ready at a time: a process that ends waits for no more than these."""


async def make_room(index: PlacementIndex, wanted: asyncio.Event) -> None:
    """Bring the index a table whenever it may want one, for ever; meant for `background()`."""
    while True:
        await wanted.wait()
        wanted.clear()
        if index.room_wanted is not None:
            index.take_room(await _touched(index.room_wanted))


async def _touched(num_buckets: int) -> PairTable:
    table = PairTable(num_buckets)
    for first in range(0, num_buckets, TOUCH_BUCKETS):
        await asyncio.to_thread(table.touch, first, first + TOUCH_BUCKETS)
    return table
