"""How much of something there was per second, smoothed; the clock is passed in. Pure."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LATELY_S = 10.0
"""What was this many seconds ago weighs 1/e of what is now."""

LEAST_AGE_S = 1.0
"""A rate is not told from less than this: one event at the start would be a thousand a second."""


class RecentRate:
    """Amounts per second of all time, idle or not, over about the last seconds."""

    def __init__(self, clock: Callable[[], float], memory_s: float = LATELY_S) -> None:
        self._clock = clock
        self._memory_s = memory_s
        self._began_s = self._seen_s = clock()
        self._amount = 0.0

    def add(self, amount: float = 1.0) -> None:
        """Note that there was so much, now."""
        self._fade()
        self._amount += amount

    @property
    def per_s(self) -> float:
        self._fade()
        age_s = max(LEAST_AGE_S, self._seen_s - self._began_s)
        return self._amount / (self._memory_s * -math.expm1(-age_s / self._memory_s))

    def _fade(self) -> None:
        now = self._clock()
        self._amount *= math.exp((self._seen_s - now) / self._memory_s)
        self._seen_s = now


class RecentMean:
    """The mean of the latest values, each of which weighs less with every later one; 0 until there is one."""

    def __init__(self, newest_share: float = 0.05) -> None:
        """`newest_share`: what the newest value weighs, once there are many."""
        self.value = 0.0
        self._newest_share = newest_share

    def add(self, value: float) -> None:
        self.value += (value - self.value) * (self._newest_share if self.value else 1.0)


class MeanRate:
    """Amounts per second of the seconds that are stated with them; what was seen earlier weighs less."""

    def __init__(self, memory_s: float = LATELY_S) -> None:
        """What was seen `memory_s` stated seconds ago weighs 1/e of what is seen now."""
        self._memory_s = memory_s
        self._amount = 0.0
        self._seconds = 0.0

    @property
    def per_s(self) -> float:
        """0 until a time was stated."""
        return self._amount / self._seconds if self._seconds else 0.0

    def add(self, amount: float, seconds: float) -> None:
        """Note that in so many seconds there was so much."""
        fade = math.exp(-seconds / self._memory_s)
        self._amount = self._amount * fade + amount
        self._seconds = self._seconds * fade + seconds


class MovingRate:
    """Amounts per second of the time in which something was under way; what goes on at once counts its time once."""

    def __init__(self, clock: Callable[[], float], memory_s: float = LATELY_S) -> None:
        self._clock = clock
        self._rate = MeanRate(memory_s)
        self._num_moving = 0
        self._since_s = 0.0

    @property
    def per_s(self) -> float:
        """0 until something was moved."""
        return self._rate.per_s

    def moved(self, amount: float) -> None:
        """Note that so much has arrived."""
        self._rate.add(amount, 0.0)

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Count the time of the block."""
        self._pass_time()
        self._num_moving += 1
        try:
            yield
        finally:
            self._pass_time()
            self._num_moving -= 1

    def _pass_time(self) -> None:
        now = self._clock()
        if self._num_moving:
            self._rate.add(0.0, now - self._since_s)
        self._since_s = now
