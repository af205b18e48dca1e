"""Who may send over a link: foreground first, a twentieth of a full link for background."""

import asyncio

import pytest

from services.cachepool.links.rate_limiter import BACKGROUND_BATCH_BYTES, FOREGROUND_PER_BACKGROUND, RateLimiter

MIB = 1 << 20


async def steps(num: int) -> None:
    """Let all others run so often."""
    for _ in range(num):
        await asyncio.sleep(0)


async def test_background_waits_for_every_foreground_stream() -> None:
    limiter, order = RateLimiter(), []

    async def background() -> None:
        async with limiter.background():
            order.append("background")

    async with limiter.foreground():
        waiting = asyncio.create_task(background())
        async with limiter.foreground():
            await steps(10)
        order.append("foreground")
        await steps(10)
    async with limiter.foreground():  # the link was free for a moment only: nobody else could run in it
        await steps(10)
        order.append("foreground")
    await waiting
    assert order == ["foreground", "foreground", "background"]


@pytest.mark.parametrize("num_background", [1, 5])
@pytest.mark.parametrize("num_foreground", [1, 8])
async def test_background_has_a_twentieth_of_a_link_that_is_always_full(
    num_foreground: int, num_background: int
) -> None:
    limiter = RateLimiter()
    sent = {True: 0, False: 0}
    is_enough = asyncio.Event()

    async def foreground(number: int) -> None:
        await steps(2 * number)  # the streams of a link do not keep step
        while True:
            async with limiter.foreground():
                await steps(16)  # until the connection takes it
            limiter.sent(MIB, is_background=False)
            sent[False] += MIB
            if sent[False] > 1000 * MIB:
                is_enough.set()

    async def background() -> None:
        while True:
            async with limiter.background():
                await steps(1)
            limiter.sent(BACKGROUND_BATCH_BYTES, is_background=True)
            sent[True] += BACKGROUND_BATCH_BYTES

    async with limiter.foreground():  # whoever comes and goes, the link is never free
        tasks = [asyncio.create_task(foreground(number)) for number in range(num_foreground)]
        tasks += [asyncio.create_task(background()) for _ in range(num_background)]
        await is_enough.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    part = sent[True] / (sent[True] + sent[False])
    assert part == pytest.approx(1 / (FOREGROUND_PER_BACKGROUND + 1), rel=0.01)


async def test_a_large_entry_waits_for_its_multiple_too() -> None:
    limiter = RateLimiter()
    limiter.sent(FOREGROUND_PER_BACKGROUND * BACKGROUND_BATCH_BYTES, is_background=False)
    async with limiter.foreground():
        async with limiter.background(0) as is_granted:
            assert is_granted
        limiter.sent(MIB, is_background=True)
        for _ in range(FOREGROUND_PER_BACKGROUND):
            async with limiter.background(0) as is_granted:
                assert not is_granted
            limiter.sent(MIB, is_background=False)
        async with limiter.background(0) as is_granted:
            assert is_granted


async def test_a_permit_that_does_not_come_ends_with_the_patience() -> None:
    limiter = RateLimiter()
    async with limiter.foreground(), limiter.background(0.01) as is_granted:
        assert not is_granted
    async with limiter.background(0.01) as is_granted:
        assert is_granted
