"""How long others may be silent or late, told so that a standstill of this process is not taken for theirs."""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

NUM_TICKS = 8

LOOKS_IN_PATIENCE = 2
"""How often a patience sees what has landed: the pace of its last part tells how soon the rest comes."""

MOST_LOOKS = 3
"""What came quickly in the last part of a patience is waited for as long as that part again, and not longer."""


class Patience:
    """As `asyncio.timeout`: cancels its body, and raises TimeoutError, when nobody was heard of for `limit_s`.

    The time is counted in ticks of the event loop. However long this process stands still, that is one tick: what
    others have said meanwhile lies in its sockets, and is read before the next.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._timeout = asyncio.timeout(None)
        self._num_left = NUM_TICKS
        self._next: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._wait_for_tick()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._next is not None:
            self._next.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def renew(self, limit_s: float) -> None:
        """Somebody was heard of: `limit_s` from now on, and a tick more at most."""
        self._limit_s = limit_s
        self._num_left = NUM_TICKS + 1  # the tick that runs has begun earlier

    def give_up(self) -> None:
        """Wait no longer, whoever has been heard of."""
        self._timeout.reschedule(asyncio.get_running_loop().time())

    def _wait_for_tick(self) -> None:
        self._next = asyncio.get_running_loop().call_later(self._limit_s / NUM_TICKS, self._tick)

    def _tick(self) -> None:
        self._num_left -= 1
        if self._num_left > 0:
            self._wait_for_tick()
        else:
            self.give_up()


async def overdue(
    num_left: Callable[[], int],
    patience_s: float | None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Return once the rest of a fetch is late; never, where `patience_s` is None.

    Late is what has not landed after `patience_s`, unless it lands within half as long again at the pace of the last
    half.
    `num_left` says how many entries have not landed.
    """
    if patience_s is None:
        await asyncio.Event().wait()
        return
    before = num_left()
    for look in range(1, MOST_LOOKS + 1):
        await sleep(patience_s / LOOKS_IN_PATIENCE)
        left = num_left()
        if look >= LOOKS_IN_PATIENCE and left > before - left:
            return
        before = left
