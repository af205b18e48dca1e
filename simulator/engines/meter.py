"""What an engine says of itself in its load events: arrivals and the share of time that prompts take."""

import math

from simulator.events import EventLoop

MEMORY_S = 5.0
"""What was seen this many seconds ago weighs 1/e of what is seen now."""


class WorkMeter:
    """Exponentially weighted means over the last seconds."""

    def __init__(self, loop: EventLoop) -> None:
        self.total_busy_s = 0.0
        self._loop = loop
        self._at_s = loop.now_s
        self._share = 0.0  # of this moment
        self._busy = 0.0
        self._arrivals = 0.0

    def arrived(self) -> None:
        self._pass_time()
        self._arrivals += 1 / MEMORY_S

    def busy(self, share: float = 1.0) -> None:
        """Prompts take so much of the time from now on."""
        self._pass_time()
        self._share = share

    def idle(self) -> None:
        self._pass_time()
        self._share = 0.0

    def read(self) -> tuple[float, float]:
        """Return the share of time that prompts take, from 0 to 1, and arrivals per second."""
        self._pass_time()
        return min(1.0, self._busy), self._arrivals

    def _pass_time(self) -> None:
        passed_s = self._loop.now_s - self._at_s
        if passed_s > 0:
            fade = math.exp(-passed_s / MEMORY_S)
            self._busy = self._busy * fade + (1 - fade) * self._share
            self._arrivals *= fade
            self.total_busy_s += passed_s * self._share
            self._at_s = self._loop.now_s
