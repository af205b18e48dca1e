"""A watch over work that has to end: a process whose work does not says so, and goes."""

import asyncio
import faulthandler
import os
from collections.abc import Callable

from shared.log import get_logger
from shared.service.health import Health
from shared.service.lifecycle import EXIT_FAILED

log = get_logger()

CHECK_S = 0.5
LAST_WORD_S = 0.2
"""For probes and logs, before the process ends."""


def _end() -> None:
    os._exit(EXIT_FAILED)


async def watch_work(
    busy_s: Callable[[], float], limit_s: float, health: Health, condition: str, end: Callable[[], None] = _end
) -> None:
    """End the process once a piece of its work has taken `limit_s`, as `busy_s` says; meant for `background()`.

    What hangs in native code cannot be interrupted: a device that does not answer, a kernel that never ends. The
    process becomes unready by `condition`, writes the stack of each thread to stderr and ends at once. Its streams
    break, other workers go on with them, and whoever supervises the process starts it again.
    """
    while True:
        taken_s = busy_s()
        if taken_s >= limit_s:
            break
        await asyncio.sleep(CHECK_S)
    health.set(condition, False, f"a step has taken {taken_s:.1f} s")
    log.critical("work_stuck", busy_s=round(taken_s, 1), limit_s=limit_s)
    faulthandler.dump_traceback()
    await asyncio.sleep(LAST_WORD_S)
    end()
