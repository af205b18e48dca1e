"""Slots for what arrives beside the event loop, which alone may evict."""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress

from services.cachepool.store.store import Store

PAUSE_S = 1.0
"""Nothing is evicted for so long after eviction did not help: what is freed and still viewed makes no slots."""


class Shortage:
    """Is told, in any thread, for which sizes memory has no slots: has the event loop evict for them."""

    def __init__(self, store: Store) -> None:
        """For the running event loop, which is the store's."""
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._is_told = False
        self._paused_until = 0.0  # of the loop's time

    def __call__(self, sizes: Sequence[int]) -> None:
        with self._lock:
            if self._is_told:
                return
            self._is_told = True
        with suppress(RuntimeError):  # the loop is closed, and nothing arrives any more
            self._loop.call_soon_threadsafe(self._relieve, sizes)

    def _relieve(self, sizes: Sequence[int]) -> None:
        with self._lock:
            self._is_told = False
        now = self._loop.time()
        if now >= self._paused_until and not self._store.make_slots(sizes):
            self._paused_until = now + PAUSE_S
