"""When a link that nothing is asked over is probed, with how many bytes, and what an answer means. Pure."""

import math

from services.cachepool.links.recent import agree

QUIET_S = 1.0
"""Seconds without ordinary transfers before a link is probed, and after a probe until the next."""

MAX_PAUSE_S = 4.0
"""The longest time between probes of a link that was once better: a return is noticed within it."""

STALE_S = 300.0
"""A link as good as ever is probed when nothing has crossed it for so long."""

FIRST_S = 0.05
"""The first probe of a row has what the link carries in so many seconds, as far as is known."""

FULL_ROUND_TRIPS = 2.0
FULL_S = 0.5
"""A probe has filled the link when it was as fast as one of half its size, and took so many round trips, or so long.
TCP doubles its rate in each round trip until it has found the link's."""

SHARE = 0.01
"""Part of the best rate that probes may take in the long run."""

LEAST_BYTES = 16 * 1024
MOST_BYTES = 16 * 1024 * 1024
"""Of one probe. A link that carries more in two round trips is known as at least so fast as the probe was."""

SAVED_S = 1.0
"""Probes in a row may take what the link carries in so many seconds at its best, saved up before."""

BEST_MEMORY_S = 1800.0
"""How long a link is expected to become what it once was."""


class Probing:
    """Decides for one link. Probes come in rows: each has twice the bytes of the one before, until that is no faster.

    A small probe does not fill a long link: it sees less than the link carries, never more. What is seen is therefore
    believed at once where it is more than was known, and only at the end of a row where it is less.
    """

    def __init__(self, now: float) -> None:
        """`now` in seconds, here and everywhere."""
        self._best = 0.0
        self._saved_s = SAVED_S
        self._seen_at = now
        self._known_at = now
        self._next_at = now
        self._pause_s = QUIET_S
        self._size_bytes = 0  # of the next one of a row; 0: none has begun
        self._before = 0.0  # rate of the one before in the row

    def saw(self, now: float, rate: float, *, is_sure: bool) -> None:
        """Take note, often, of what is known of the link; what is not sure makes no best rate."""
        passed_s, self._seen_at = now - self._seen_at, now
        if self._best > rate:
            self._best = rate + (self._best - rate) * math.exp(-passed_s / BEST_MEMORY_S)
        elif is_sure:
            self._best = rate
        self._saved_s = min(self._saved_s + SHARE * passed_s, SAVED_S)

    def carried(self, now: float) -> None:
        """Ordinary transfers are crossing: they say what the link is."""
        self._known_at, self._pause_s = now, QUIET_S
        self._end_row(now, QUIET_S)

    def next_bytes(self, now: float, rate: float) -> int:
        """Return the size of a probe that is due, 0 for none. `rate` is what is known of the link, 0: nothing."""
        if not rate or now < self._next_at:
            return 0
        if not self._size_bytes and not self._begin_row(now, rate):
            return 0
        spent_s = self._size_bytes / max(self._best, rate)
        if spent_s > self._saved_s:
            self._end_row(now, self._pause_s)
            return 0
        self._saved_s -= spent_s
        return self._size_bytes

    def failed(self, now: float) -> None:
        """A probe was not answered, or had to give way."""
        self._give_up(now)

    def ended(self, now: float, seen: float, rate: float, round_trip_s: float) -> float:
        """Take in the rate that a probe has seen; return what is known of the link from now on, 0: the same as before.

        A single probe proves nothing: an event loop that was late makes it look quick or slow.
        """
        before, size_bytes = self._before, self._size_bytes
        low, high = min(seen, before), max(seen, before)
        has_filled = agree(low, high) and size_bytes >= seen * min(FULL_ROUND_TRIPS * round_trip_s, FULL_S)
        self._known_at = now
        if is_better := low > rate and (has_filled or not agree(low, rate)):
            self._pause_s = QUIET_S
        is_back = is_better and agree(low, self._best)
        if has_filled or is_back or seen < before or size_bytes == MOST_BYTES:
            self._give_up(now)
        else:
            self._before, self._size_bytes = seen, min(2 * size_bytes, MOST_BYTES)
        if is_better:
            return low
        return high if has_filled and high < rate and not agree(high, rate) else 0.0

    def _begin_row(self, now: float, rate: float) -> bool:
        """Begin a row if there is a reason, and enough is saved for two probes: a single one proves nothing."""
        is_as_ever = rate >= self._best or agree(rate, self._best)
        if is_as_ever and now < self._known_at + STALE_S:
            return False
        size_bytes = int(min(max(rate * FIRST_S, LEAST_BYTES), MOST_BYTES))
        if 3 * size_bytes > self._saved_s * max(self._best, rate):
            return False
        self._size_bytes = size_bytes
        return True

    def _give_up(self, now: float) -> None:
        self._end_row(now, self._pause_s)
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)

    def _end_row(self, now: float, pause_s: float) -> None:
        self._size_bytes, self._before = 0, 0.0
        self._next_at = now + pause_s
