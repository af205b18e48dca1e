"""Memory behind the pages that are taken next, asked of the kernel before a request does."""

import asyncio

from shared.model.pages.kv import PagedKv

AHEAD_BYTES = 256 << 20
SLICE_BYTES = 8 << 20
"""What is asked for in one call, which takes milliseconds: a request that comes meanwhile takes turns with it."""


class ReadyPages:
    """Keeps `AHEAD_BYTES` of pages in hand beyond those that were ever taken.

    A page that is written to for the first time makes the kernel find and clear memory, while every other thread of
    the process that does the same waits. A long cached prompt pays more for that than for all else on its way from the
    pool: docs/engines/pages.md. What is never needed is still never taken.
    """

    def __init__(self, kv: PagedKv, ahead_bytes: int = AHEAD_BYTES) -> None:
        self._kv = kv
        self._ahead = max(1, ahead_bytes // kv.page_bytes)
        self._slice = max(1, SLICE_BYTES // kv.page_bytes)
        self._wake = asyncio.Event()
        self.num_ready = 0

    @property
    def _wanted(self) -> int:
        return min(self._kv.num_pages, self._kv.num_touched + self._ahead)

    def pages_taken(self) -> None:
        """Say that a reservation was made or extended; returns at once."""
        self._wake.set()

    async def run(self) -> None:
        """Keep ahead until all pages are ready, or cancelled."""
        while True:
            self._wake.clear()
            while self.num_ready < self._wanted:
                end = min(self._wanted, self.num_ready + self._slice)
                await asyncio.to_thread(self._kv.populate, self.num_ready, end)
                self.num_ready = end
            if self.num_ready == self._kv.num_pages:
                return
            await self._wake.wait()
