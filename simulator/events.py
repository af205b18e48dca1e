"""The clock of a simulation: callbacks in order of time, and of scheduling where times are equal."""

import heapq
import math
from collections.abc import Callable


class SimTimer:
    """A callback that has not run yet."""

    __slots__ = ("at_s", "call")

    def __init__(self, at_s: float, call: Callable[[], None]) -> None:
        self.at_s = at_s
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Do not run; idempotent."""
        self.call = None


class EventLoop:
    """Owns the simulated time, which moves only from one callback to the next.

    Deterministic: callbacks of one time run in the order in which they were scheduled.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_events = 0
        self._heap: list[tuple[float, int, SimTimer]] = []
        self._num_timers = 0
        self._is_stopped = False

    def at(self, at_s: float, call: Callable[[], None]) -> SimTimer:
        """Run `call` at a time, now at the earliest."""
        timer = SimTimer(max(at_s, self.now_s), call)
        self._num_timers += 1
        heapq.heappush(self._heap, (timer.at_s, self._num_timers, timer))
        return timer

    def after(self, delay_s: float, call: Callable[[], None]) -> SimTimer:
        return self.at(self.now_s + delay_s, call)

    def stop(self) -> None:
        """Let `run` return behind the callback that runs."""
        self._is_stopped = True

    def run(self, until_s: float = math.inf) -> None:
        """Run all callbacks up to a time, those included that are scheduled meanwhile, or until `stop`."""
        heap, pop = self._heap, heapq.heappop
        self._is_stopped = False
        while heap and heap[0][0] <= until_s and not self._is_stopped:
            at_s, _, timer = pop(heap)
            call = timer.call
            if call is not None:
                timer.call = None
                self.now_s = at_s
                self.num_events += 1
                call()
        if until_s < math.inf and not self._is_stopped:
            self.now_s = max(self.now_s, until_s)
