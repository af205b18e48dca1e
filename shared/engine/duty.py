"""Background work that rests while something else needs the machine."""

import asyncio
from contextlib import suppress


class DutyCycle:
    """Lets work take a part of the time, as long as it is limited; all of it otherwise. Belongs to the event loop."""

    def __init__(self, share: float) -> None:
        """`share` is between 0 and 1."""
        self._rest_per_work = 1 / share - 1
        self._unlimited = asyncio.Event()
        self._unlimited.set()

    def limit(self, limited: bool) -> None:
        """Say whether the work is to rest; who rests already goes on when it is not."""
        if limited:
            self._unlimited.clear()
        else:
            self._unlimited.set()

    async def rest(self, worked_s: float) -> None:
        """Return when the time since the last rest, `worked_s` of work, is worked off."""
        if self._unlimited.is_set():
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(worked_s * self._rest_per_work):
                await self._unlimited.wait()
