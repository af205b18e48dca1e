"""Patience with others: it ends when they are silent or late, and not because this process stood still."""

import asyncio
import socket
import time
from collections.abc import Callable

import pytest

from shared.patience import NUM_TICKS, Patience, overdue


async def test_silence_ends_the_body() -> None:
    with pytest.raises(TimeoutError):
        async with Patience(0.02):
            await asyncio.Event().wait()


async def test_what_was_said_while_this_process_stood_still_is_heard() -> None:
    """A plain timeout would be over when the loop goes on, before anything is read."""
    ours, theirs = socket.socketpair()
    with theirs:
        reader, writer = await asyncio.open_connection(sock=ours)
        async with Patience(0.1):
            reading = asyncio.create_task(reader.readline())
            await asyncio.sleep(0)
            theirs.sendall(b"here I am\n")
            time.sleep(0.3)  # noqa: ASYNC251 - a standstill
            assert await reading == b"here I am\n"
        writer.close()
        await writer.wait_closed()


async def test_every_sign_of_life_renews_it() -> None:
    async with Patience(0.1) as patience:
        for _ in range(4):
            for _ in range(NUM_TICKS - 1):
                patience._tick()
            patience.renew(0.1)
        patience.renew(60.0)


async def test_the_limit_may_change() -> None:
    async def body() -> None:
        async with Patience(60.0) as patience:
            patience.renew(0.02)
            patience._tick()
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await body()


async def test_other_ends_pass_through() -> None:
    with pytest.raises(TimeoutError, match="of the body"):
        async with Patience(60.0):
            raise TimeoutError("of the body")
    async with Patience(0.02):
        pass
    await asyncio.sleep(0.05)  # nothing is left that could still cancel us


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
        (lambda now: 100 - 30 * now, 2.0),  # nor is a second and a third more soon enough
        (lambda now: max(0, int(100 - 40 * now)), 3.0),  # half a second more is: it is given a second
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
