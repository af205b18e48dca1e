"""A single worker thread behind `await`, so that torch and bulk copies never run on the event loop."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

LONG_PROMPT_TOKENS = 4096
"""Hashing this many takes somewhat longer than a thread takes to wake up."""


class WorkThread:
    """Runs calls one after the other in one thread of its own.

    `run` returns or raises only when the call has ended, also when the waiter was cancelled: the thread may still
    be reading pages that the waiter would free.
    """

    def __init__(self, name: str, initializer: Callable[[], None] | None = None) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name, initializer=initializer)
        self._busy_since: float | None = None  # written by the thread

    @property
    def busy_s(self) -> float:
        """How long the call that runs has been running; 0 when none does, or one that may take as long as it likes."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    async def run(
        self, call: Callable[[], T], stop: Callable[[], None] = lambda: None, *, may_take_long: bool = False
    ) -> T:
        """Run `call` in the thread and return its result. `stop` is called when the waiter is cancelled: it may make a
        long call end sooner. `may_take_long`: `busy_s` leaves it out.
        """
        work = call if may_take_long else partial(self._timed, call)
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            stop()
            await outlast(future)
            raise

    def _timed(self, call: Callable[[], T]) -> T:
        self._busy_since = time.monotonic()
        try:
            return call()
        finally:
            self._busy_since = None

    def close(self) -> None:
        """Wait for the running call and end the thread. Idempotent."""
        self._pool.shutdown(wait=True, cancel_futures=True)


async def outlast(future: "asyncio.Future[T]") -> None:
    """Wait until `future` is done, whatever happens to the waiter; for work that cannot be interrupted."""
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            continue  # the caller re-raises the first cancellation


async def end_all(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks, and return when all have ended. Their errors are dropped.

    Whoever is cancelled meanwhile raises that only then.
    """
    for task in tasks:
        task.cancel()
    is_cancelled = False
    while not all(task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            is_cancelled = True
    for task in tasks:
        if not task.cancelled():
            task.exception()
    if is_cancelled:
        raise asyncio.CancelledError


async def beside_loop(num_tokens: int, work: Callable[[], T]) -> T:
    """Run what takes time in proportion to a prompt's tokens, such as hashing them, where it holds nobody up.

    A long prompt's work goes to a thread; a short one's is done sooner than a thread is awake.
    """
    return await asyncio.to_thread(work) if num_tokens >= LONG_PROMPT_TOKENS else work()
