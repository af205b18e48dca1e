"""Batches of a link that wait for a free connection, most urgent first."""

import asyncio
import heapq
import threading
from collections.abc import Sequence
from itertools import count

from shared.errors import LaneBroken
from shared.kv.codec import Payload


class OutgoingBatch:
    """What is handed to a sending thread at once. Holds the memory of its parts until it is sent or has failed."""

    def __init__(self, parts: Sequence[Payload], *, is_background: bool, layer: int) -> None:
        self.parts = parts
        self.num_bytes = sum(map(len, parts))
        self.urgency = (is_background, layer)
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()

    def finish(self, error: str | None = None) -> None:
        """Tell who waits that all of it is with the kernel, or why not. Any thread, once."""
        self.parts = ()
        try:
            self._loop.call_soon_threadsafe(self._set, error)
        except RuntimeError:  # the loop is closed: nobody waits
            return

    def _set(self, error: str | None) -> None:
        if self.done.done():  # it was given up
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(LaneBroken(error))


class SendQueue:
    """Hands batches to the sending threads of a link: foreground first, then the lowest layer, then as they came.

    Holds the batches that wait.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._heap: list[tuple[tuple[bool, int], int, OutgoingBatch]] = []
        self._numbers = count()
        self._ended: str | None = None

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, batch: OutgoingBatch) -> None:
        """Raises `LaneBroken` when the queue has ended."""
        with self._changed:
            if self._ended is not None:
                raise LaneBroken(self._ended)
            heapq.heappush(self._heap, (batch.urgency, next(self._numbers), batch))
            self._changed.notify()

    def get(self) -> OutgoingBatch | None:
        """Wait for a batch; None when the queue has ended."""
        with self._changed:
            while not self._heap:
                if self._ended is not None:
                    return None
                self._changed.wait()
            return heapq.heappop(self._heap)[-1]

    def withdraw(self, batch: OutgoingBatch) -> None:
        """Forget a batch unless a thread has it."""
        with self._changed:
            self._heap = [item for item in self._heap if item[-1] is not batch]
            heapq.heapify(self._heap)

    def end(self, reason: str) -> None:
        """Fail what waits, and whatever comes."""
        with self._changed:
            self._ended = self._ended or reason
            waiting, self._heap = self._heap, []
            self._changed.notify_all()
        for _, _, batch in waiting:
            batch.finish(reason)
