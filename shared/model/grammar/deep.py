"""Threads with a stack for what a client may nest: the compiler descends as deep as rules refer to one another."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

STACK_BYTES = 256 << 20
"""Several times what the deepest chain of rules takes that a constraint has room for: with the usual 8 MiB a chain of
3,000 rules would end the process. Only what is touched takes memory."""

_starting = threading.Lock()


async def in_deep_thread(work: Callable[[], T], name: str) -> T:
    """Run `work` in a thread of its own; return or raise what it does. A waiter that is cancelled leaves it running."""
    future: Future[T] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()  # from here on nobody can cancel it
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - whoever waits has it: nothing is dropped
            future.set_exception(error)

    with _starting:
        usual = threading.stack_size(STACK_BYTES)
        try:
            threading.Thread(target=run, name=name).start()
        finally:
            threading.stack_size(usual)
    return await asyncio.wrap_future(future)
