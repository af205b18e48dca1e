"""Touching memory before it is needed, in a thread of its own."""

import asyncio
import threading

from shared.errors import Overloaded
from shared.lanes.slots import SlotMemory
from shared.log import get_logger

log = get_logger()


class TouchAhead:
    """Keeps so much memory touched beyond what was ever used, so that whoever takes a slot need not wait for pages.

    Owned by the background jobs of a process. Once the system refuses memory, no more is touched ahead: slots then
    come from what is touched already, or by touching when they are taken.
    """

    def __init__(self, memory: SlotMemory, num_bytes: int) -> None:
        self._memory = memory
        self._num_bytes = num_bytes

    async def run(self) -> None:
        """Touch until cancelled or refused; returns when no thread touches any more."""
        loop = asyncio.get_running_loop()
        used, is_over = asyncio.Event(), threading.Event()

        def changed() -> None:
            if not is_over.is_set():
                loop.call_soon_threadsafe(used.set)

        self._memory.watch(changed)
        try:
            while True:
                used.clear()
                touching = asyncio.ensure_future(
                    asyncio.to_thread(self._memory.touch_ahead, self._num_bytes, is_over.is_set)
                )
                try:
                    await asyncio.shield(touching)
                except asyncio.CancelledError:
                    is_over.set()
                    await asyncio.wait((touching,))  # at most one piece
                    raise
                await used.wait()
        except Overloaded as error:
            log.warning("memory_not_touched_ahead", error=str(error), touched_bytes=self._memory.touched_bytes)
        finally:
            is_over.set()
            self._memory.unwatch(changed)
