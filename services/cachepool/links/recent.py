"""What came in the last moments of carrying, and which rates are the same. Pure."""

from collections import deque

_PIECES = 64
"""What comes in less than this part of the window is kept as one piece: a bound on what is remembered."""


AGREEING = 1.5
"""Rates within this factor of each other are the same rate, seen twice."""


def agree(one: float, other: float) -> bool:
    """Return whether two rates may be the same one."""
    return max(one, other) <= AGREEING * min(one, other)


class Recent:
    """A sliding window over time in which a link was busy; all other time does not pass here."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._pieces: deque[tuple[float, float]] = deque()  # (bytes, seconds), each spread evenly
        self._seconds = 0.0

    def add(self, num_bytes: float, seconds: float) -> None:
        """Take note of bytes that came in so many seconds after all that came before."""
        if self._pieces and self._pieces[-1][1] + seconds <= self._window_s / _PIECES:
            last_bytes, last_s = self._pieces.pop()
            self._pieces.append((last_bytes + num_bytes, last_s + seconds))
        else:
            self._pieces.append((num_bytes, seconds))
        self._seconds += seconds
        while self._seconds - self._pieces[0][1] >= self._window_s:
            self._seconds -= self._pieces.popleft()[1]

    def before(self, pending_s: float) -> tuple[float, float]:
        """Return the bytes and the seconds of a window that ends in `pending_s` without any.

        It has fewer seconds than the window where less was seen, and more where more are pending.
        """
        num_bytes, left_s = 0.0, max(0.0, self._window_s - pending_s)
        seconds = pending_s
        for piece_bytes, piece_s in reversed(self._pieces):
            if left_s < piece_s:
                return num_bytes + piece_bytes * left_s / piece_s, seconds + left_s
            num_bytes, seconds, left_s = num_bytes + piece_bytes, seconds + piece_s, left_s - piece_s
        return num_bytes, seconds
