"""Who may send to one datacenter: foreground streams first, and a small part of a full link for background. No I/O."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

BACKGROUND_BATCH_BYTES = 64 * 1024
"""A foreground frame waits for at most one such message of each background stream."""

FOREGROUND_PER_BACKGROUND = 19
"""Bytes of foreground for each byte of background on a link that is always full: background has a twentieth of it."""

_OWED_BYTES = FOREGROUND_PER_BACKGROUND * BACKGROUND_BATCH_BYTES


class RateLimiter:
    """Background streams wait while any foreground stream has something to send, but not for ever.

    A foreground stream holds its permit from when it has a frame until the connection has taken it: while the link is
    full, that is always. A link whose foreground waits for prefill is background's. Beside a foreground that never
    pauses, each message of background waits until its multiple in bytes of foreground has left since the one before.
    """

    def __init__(self) -> None:
        self._num_foreground = 0
        self._owed = _OWED_BYTES  # foreground that has to leave before the next background message
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def foreground(self) -> AsyncIterator[None]:
        """Hold the link for one message."""
        self._num_foreground += 1
        try:
            yield
        finally:
            self._num_foreground -= 1
            self._wake()

    @asynccontextmanager
    async def background(self, patience_s: float | None = None) -> AsyncIterator[bool]:
        """Wait for the permit to send one message; yield whether it was granted within `patience_s`."""
        try:
            async with asyncio.timeout(patience_s):
                while not self._is_free:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            yield False
            return
        self._owed = min(self._owed, 0) + _OWED_BYTES  # at once, so that of many background streams one goes
        yield True

    def sent(self, num_bytes: int, *, is_background: bool) -> None:
        """A message of so many bytes has left."""
        if not is_background:
            self._owed = max(-_OWED_BYTES, self._owed - num_bytes)  # what is over counts for one more message at most
            self._wake()
        else:  # its permit was for a usual message; an entry may be larger
            self._owed += FOREGROUND_PER_BACKGROUND * max(0, num_bytes - BACKGROUND_BATCH_BYTES)

    @property
    def _is_free(self) -> bool:
        return not self._num_foreground or self._owed <= 0

    def _wake(self) -> None:
        if self._is_free:
            self._changed.set()
