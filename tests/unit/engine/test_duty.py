"""Background work that rests: as long as it has worked, times a factor, unless nothing else needs the machine."""

import asyncio

from shared.engine.duty import DutyCycle


async def test_nobody_rests_when_nothing_else_goes_on() -> None:
    async with asyncio.timeout(20):
        await DutyCycle(0.2).rest(1000.0)


async def test_a_rest_is_as_long_as_the_share_says() -> None:
    duty, loop = DutyCycle(0.2), asyncio.get_running_loop()
    duty.limit(True)
    started = loop.time()
    await duty.rest(0.01)
    assert loop.time() - started >= 0.04


async def test_a_rest_ends_when_the_limit_is_lifted() -> None:
    duty = DutyCycle(0.2)
    duty.limit(True)
    resting = asyncio.create_task(duty.rest(1000.0))
    await asyncio.sleep(0)
    duty.limit(False)
    async with asyncio.timeout(20):
        await resting
