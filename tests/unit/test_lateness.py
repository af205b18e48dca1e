"""When a fetch is waited for no more, on a manual clock."""

import asyncio
from collections.abc import Callable

import pytest

from shared.lateness import overdue


async def ends_at(num_left: Callable[[float], int], patience_s: float) -> float:
    """Return when a fetch is late of which `num_left(now)` entries have not landed."""
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    await overdue(lambda: num_left(now), patience_s, sleep)
    return now


@pytest.mark.parametrize(
    ("num_left", "late_at"),
    [
        (lambda _now: 100, 2.0),  # nothing comes
        (lambda now: 100 - 10 * now, 2.0),  # it would take eight seconds more
        (lambda now: 100 - 30 * now, 4.0),  # not by then, but within another patience: it is given that
        (lambda now: 10 if now > 0.5 else 100, 2.0),  # came quickly at first, and stopped
        (lambda now: 30 if now > 1.5 else 100, 3.0),  # came quickly at last, and stopped
    ],
)
async def test_late_is_what_does_not_come_in_time_nor_quickly(num_left: Callable[[float], int], late_at: float) -> None:
    assert await ends_at(num_left, 2.0) == late_at


async def test_without_patience_nothing_is_late() -> None:
    waiting = asyncio.create_task(overdue(lambda: 1, None))
    await asyncio.wait({waiting}, timeout=0.01)
    assert not waiting.done()
    waiting.cancel()
