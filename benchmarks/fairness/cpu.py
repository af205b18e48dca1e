"""The CPU time that a process has used, at any instant of a stretch of time: what it computed between two instants."""

import asyncio
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

SAMPLE_S = 0.01
"""Between two looks: the kernel counts CPU time as finely."""


@dataclass
class CpuHistory:
    """CPU seconds by seconds of `time.perf_counter`, as far as it was recorded."""

    instants_s: list[float] = field(default_factory=list)
    used_s: list[float] = field(default_factory=list)

    def note(self, instant_s: float, used_s: float) -> None:
        self.instants_s.append(instant_s)
        self.used_s.append(used_s)

    def between(self, begin_s: float, end_s: float) -> float:
        """Return the CPU seconds that were used between two instants."""
        return self._at(end_s) - self._at(begin_s)

    def _at(self, instant_s: float) -> float:
        """Interpolate; before the first and after the last look, what these found."""
        after = bisect_left(self.instants_s, instant_s)
        if after in (0, len(self.instants_s)):
            return self.used_s[min(after, len(self.used_s) - 1)]
        begin_s, end_s = self.instants_s[after - 1 : after + 1]
        part = (instant_s - begin_s) / (end_s - begin_s)
        return self.used_s[after - 1] + part * (self.used_s[after] - self.used_s[after - 1])


@asynccontextmanager
async def recorded(used_s: Callable[[], Mapping[str, float]]) -> AsyncIterator[dict[str, CpuHistory]]:
    """Record what `used_s` returns of each process for as long as the context is open."""
    histories: defaultdict[str, CpuHistory] = defaultdict(CpuHistory)

    def look() -> None:
        now_s = time.perf_counter()
        for process, seconds in used_s().items():
            histories[process].note(now_s, seconds)

    async def look_again() -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            look()

    look()
    looking = asyncio.create_task(look_again())
    try:
        yield histories
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
