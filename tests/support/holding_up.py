"""What holds blocks up on their way, and the clock by which they are late: both go on when a test says so."""

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest

from services.cachepool.serving.outlets import Outlet
from shared.kv.frame import Frame
from shared.patience import overdue
from tests.support.engines import Node
from tests.support.waiting import until


class PatienceClock:
    """The time by which fetches lose their patience, by the real rule; the patience itself may be of any length."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._halves = asyncio.Semaphore(0)
        self._num_waits = 0
        monkeypatch.setattr("shared.engine.fetch.overdue", partial(overdue, sleep=self._sleep))

    async def _sleep(self, _seconds: float) -> None:
        self._num_waits += 1
        await self._halves.acquire()

    async def pass_half(self) -> None:
        """Let half of a patience pass that will be waited for after it, too."""
        await until(lambda: self._num_waits)
        num_waits = self._num_waits
        self._halves.release()
        await until(lambda: self._num_waits > num_waits)

    async def pass_last_half(self) -> None:
        """Let the half pass at the end of which patience ends."""
        await until(lambda: self._num_waits)
        self._halves.release()


class HeldLink:
    """Lets a pool send so many entries and no more."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch, num_entries: int) -> None:
        assert node.pool is not None
        self._num_left = num_entries
        self._changed = asyncio.Condition()
        self._send = node.pool.servicer._send
        monkeypatch.setattr(node.pool.servicer, "_send", self._send_held)

    async def _send_held(self, frames: Sequence[Frame], outlet: Outlet) -> None:
        rest = list(frames)
        while rest:
            async with self._changed:
                await self._changed.wait_for(lambda: self._num_left)
            passing, rest = rest[: self._num_left], rest[self._num_left :]
            self._num_left -= len(passing)
            await self._send(passing, outlet)

    async def let(self, num_entries: int) -> None:
        """Let so many more pass."""
        async with self._changed:
            self._num_left += num_entries
            self._changed.notify_all()

    async def open(self) -> None:
        """Let everything pass from now on."""
        await self.let(1 << 30)
