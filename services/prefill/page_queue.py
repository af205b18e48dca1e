"""Waiting for pages: first come, first served, with a bound on how many may wait."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from shared.deadline import Deadline
from shared.errors import ContextTooLong, Overloaded
from shared.ids import BlockKey
from shared.model.pages.kv import PagedKv
from shared.model.pages.reservation import Reservation


class PageQueue:
    """Hands out reservations of one `PagedKv` in arrival order and takes every one of them back."""

    def __init__(self, kv: PagedKv, max_waiting: int, stride_tokens: int) -> None:
        """`stride_tokens`: how far a holder goes between two slides; see `PagedKv.reserve`."""
        self._kv = kv
        self.stride_tokens = stride_tokens
        self._max_waiting = max_waiting
        self._turn = asyncio.Lock()  # asyncio's lock is fair, which makes this a queue
        self._freed = asyncio.Event()
        self.num_waiting = 0

    @asynccontextmanager
    async def reserved(
        self, keys: Sequence[BlockKey], num_tokens: int, deadline: Deadline
    ) -> AsyncIterator[Reservation]:
        """Reserve pages for `num_tokens`, waiting if need be, and release them at the end.

        Raises `ContextTooLong` when they could never fit, `Overloaded` when too many wait, `DeadlineExceeded`.
        """
        if not self._kv.fits(num_tokens, self.stride_tokens):
            capacity = self._kv.capacity_tokens(self.stride_tokens)
            raise ContextTooLong(f"{num_tokens} tokens do not fit the worker's KV memory of {capacity}")
        if self.num_waiting >= self._max_waiting:
            raise Overloaded(f"{self.num_waiting} prompts are waiting for KV memory already")
        self.num_waiting += 1
        try:
            async with deadline.scope("waiting for KV memory"), self._turn:
                while (reservation := self._kv.reserve(keys, num_tokens, self.stride_tokens)) is None:
                    self._freed.clear()
                    await self._freed.wait()
        finally:
            self.num_waiting -= 1
        try:
            yield reservation
        finally:
            self._kv.release(reservation)
            self._freed.set()
