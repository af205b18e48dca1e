"""Whether the object store is worth asking: one that fails again and again is left alone for a while. Pure."""

from collections.abc import Callable

MAX_FAILURES = 3
FIRST_REST_S = 1.0
LONGEST_REST_S = 30.0


class Breaker:
    """Open (do not ask) for a while after `MAX_FAILURES` failures in a row, twice as long each time it opens again.

    So an object store that is down or slow costs a few requests their deadline, not every request.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._num_failures = 0
        self._rest_s = FIRST_REST_S
        self._open_until = 0.0

    @property
    def is_open(self) -> bool:
        return self._clock() < self._open_until

    @property
    def rest_left_s(self) -> float:
        """Seconds until it is worth asking again; 0 when it is now."""
        return max(0.0, self._open_until - self._clock())

    def succeeded(self) -> None:
        self._num_failures = 0
        self._rest_s = FIRST_REST_S

    def failed(self) -> None:
        if self.is_open:
            return  # asked before it opened: says nothing new
        self._num_failures += 1
        if self._num_failures >= MAX_FAILURES:
            self._open_until = self._clock() + self._rest_s
            self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)
