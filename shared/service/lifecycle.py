"""How a process lives and ends: signals, work in flight, background loops, a truthful exit code."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NoReturn

import uvloop

from shared.errors import Draining, PrfaasError, SettingsError
from shared.log import get_logger

log = get_logger()

EXIT_OK, EXIT_FAILED, EXIT_SETTINGS = 0, 1, 2
FORCED_EXIT_LIMIT_S = 2.0

new_event_loop = uvloop.new_event_loop
"""Makes the event loop of every service: libuv's, which spends less on each wake-up than asyncio's own."""


class Lifecycle:
    """Says when the process shall stop. `main` waits for `stopping`, then drains and returns."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.forced = False

    def stop(self, reason: str) -> None:
        """Ask for an orderly end; idempotent."""
        if not self.stopping.is_set():
            log.info("shutdown_started", reason=reason)
            self.stopping.set()


def run_service(main: Callable[[Lifecycle], Awaitable[None]]) -> int:
    """Run `main` until it returns and return the exit code: 0 clean, 1 crashed or forced, 2 bad settings.

    SIGTERM or SIGINT sets `stopping`; a second one cancels `main`, a third one ends the process on the spot.
    """
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_supervise(main))


class InFlight:
    """Counts the work that a process has accepted and not finished; refuses more once it drains."""

    def __init__(self) -> None:
        self.count = 0
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def track(self, *, even_when_draining: bool = False) -> Iterator[None]:
        """Count the body. Raises Draining after `drain()`, unless the work is part of some that is running already."""
        if self.draining and not even_when_draining:
            raise Draining("this process is shutting down")
        self.count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.count -= 1
            if self.count == 0:
                self._idle.set()

    def drain(self) -> None:
        """Refuse new work from now on."""
        self.draining = True

    async def idle(self, timeout_s: float) -> bool:
        """Wait until nothing is in flight; False when that takes longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return self.count == 0
        return True


class Background:
    """Loops that live as long as their `background()` block; one that crashes ends the block with its exception."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, loop: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        task = self._group.create_task(loop, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def background() -> AsyncIterator[Background]:
    """Hold background loops in one TaskGroup: cancelled and awaited at exit; a crash cancels the body and raises."""
    async with asyncio.TaskGroup() as group:
        jobs = Background(group)
        try:
            yield jobs
        finally:
            jobs.cancel()


async def _supervise(main: Callable[[Lifecycle], Awaitable[None]]) -> int:
    lifecycle = Lifecycle()
    task = asyncio.ensure_future(main(lifecycle))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Plain asyncio.run would end on SIGTERM without running a single `finally`.
        loop.add_signal_handler(number, _on_signal, number, lifecycle, task)
    try:
        await task
    except asyncio.CancelledError:
        if not lifecycle.forced:
            raise
        return EXIT_FAILED
    except BaseException as error:  # a TaskGroup's crash is a BaseExceptionGroup at times
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return _report(error)
    log.info("shutdown_finished", forced=lifecycle.forced)
    return EXIT_FAILED if lifecycle.forced else EXIT_OK


def _on_signal(number: signal.Signals, lifecycle: Lifecycle, main: "asyncio.Future[None]") -> None:
    if not lifecycle.stopping.is_set():
        lifecycle.stop(number.name)
    elif not lifecycle.forced:
        lifecycle.forced = True
        log.warning("shutdown_forced", num_tasks_cancelled=len(asyncio.all_tasks()) - 1)
        # A thread that is stuck in native code would keep the interpreter from ending.
        limit = threading.Timer(FORCED_EXIT_LIMIT_S, _exit_now)
        limit.daemon = True
        limit.start()
        main.cancel()
    else:
        _exit_now()


def _exit_now() -> NoReturn:
    os._exit(EXIT_FAILED)


def _report(error: BaseException) -> int:
    """Log why the process ends and return the exit code that says so."""
    leaves = list(_leaves(error))
    problems = [leaf for leaf in leaves if isinstance(leaf, SettingsError)]
    if problems and len(problems) == len(leaves):
        for problem in problems:
            sys.stderr.write("bad settings:\n" + "".join(f"  {line}\n" for line in str(problem).splitlines()))
        return EXIT_SETTINGS
    for leaf in leaves:
        if isinstance(leaf, PrfaasError):
            log.critical("service_failed", code=leaf.code, error=str(leaf))
        else:
            log.critical("service_crashed", error=str(leaf), exc_info=leaf)
    return EXIT_FAILED


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
