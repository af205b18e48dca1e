"""Waiting for what another process or task will do soon."""

import asyncio
from collections.abc import Awaitable, Callable

LIMIT_S = 40.0
"""Of waits for what is quick when all is well: tests share the machine, and any process may stand still a while."""


async def eventually(holds: Callable[[], Awaitable[bool]], within_s: float = LIMIT_S) -> None:
    """Ask again and again until it holds; fail when it does not within `within_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not await holds():
        assert loop.time() < deadline, f"did not come true within {within_s:g} s"
        await asyncio.sleep(0.02)


async def until(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Wait for what another task of this process counts."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - what is waited for is in another task's counters
            await asyncio.sleep(0.005)
