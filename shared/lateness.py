"""When a fetch has been waited for long enough: what is late by then is computed sooner than it comes."""

import asyncio
from collections.abc import Awaitable, Callable

LOOKS_IN_PATIENCE = 2
"""How often a patience sees what has landed: the pace of its last part tells how soon the rest comes."""

MOST_PATIENCES = 2
"""Who came quickly at the end of the first is waited for as long again, and not longer."""


async def overdue(
    num_left: Callable[[], int],
    patience_s: float | None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Return once the rest of a fetch is late; never, where `patience_s` is None.

    Late is what has not landed after `patience_s`, unless it lands within as long again at the pace of the last half.
    `num_left` says how many entries have not landed.
    """
    if patience_s is None:
        await asyncio.Event().wait()
        return
    before = num_left()
    for look in range(1, LOOKS_IN_PATIENCE * MOST_PATIENCES + 1):
        await sleep(patience_s / LOOKS_IN_PATIENCE)
        left = num_left()
        if look >= LOOKS_IN_PATIENCE and left > (before - left) * LOOKS_IN_PATIENCE:
            return
        before = left
