"""Work on the items of a stream ahead of their consumer, who gets them in order."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from shared.engine.thread import end_all

T = TypeVar("T")
R = TypeVar("R")


async def in_order(
    items: AsyncGenerator[T, None], work: Callable[[T], Coroutine[Any, Any, R]], most: int
) -> AsyncGenerator[R, None]:
    """Yield what `work` makes of each item; closes `items`.

    Of so many items at `most` the work has begun and the consumer is not done yet. The next one is asked for when there
    are fewer. Raises what `items` and `work` raise, after all that came before. When this is closed the work that has
    begun is cancelled, and has ended on return, also when the consumer is cancelled once more. Of items and results
    nothing is held here that the consumer has got.
    """
    begun: asyncio.Queue[asyncio.Task[R] | None] = asyncio.Queue()
    room = asyncio.Semaphore(most)
    tasks: set[asyncio.Task[R]] = set()

    async def begin() -> None:
        try:
            async with aclosing(items):
                await room.acquire()
                async for item in items:
                    task = asyncio.create_task(work(item), name="work ahead")
                    tasks.add(task)
                    begun.put_nowait(task)
                    del item, task
                    await room.acquire()
        finally:
            begun.put_nowait(None)

    beginning = asyncio.create_task(begin(), name="reading ahead")
    try:
        while (task := await begun.get()) is not None:
            result = await task
            tasks.discard(task)
            del task
            yield result
            del result
            room.release()
        await beginning
    finally:
        await end_all(beginning, *tasks)  # this generator raises the first error, or is closed for another reason
