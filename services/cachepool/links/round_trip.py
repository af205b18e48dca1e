"""The round trip of a link: the least of what the last questions took that crossed it while it paused. Pure."""

import math
from collections import deque

ASK_EVERY_S = 5.0
"""Seconds between questions, while the link pauses."""

SOON_S = 1.0
"""The same until one was answered in a pause."""

NUM_KEPT = 6
"""Answers that are remembered: half a minute's."""

OVERDUE_S = 300.0
"""A link that never pauses for so long is asked all the same."""


class RoundTrip:
    """What a question takes to be answered that the far end answers at once: the path, and a little of both ends.

    A queue on the path is no part of it. That the least counts leaves out the queues of others; that nothing is asked
    while the link carries leaves out its own, which would be in every answer for as long as it is full.
    """

    def __init__(self) -> None:
        self._answers_s: deque[float] = deque(maxlen=NUM_KEPT)
        self._asked_at = -math.inf
        self._asked_in_pause = False
        self._is_answered_in_pause = False

    @property
    def seconds(self) -> float:
        """0 until a question was answered."""
        return min(self._answers_s, default=0.0)

    def is_due(self, now: float, *, is_pausing: bool) -> bool:
        """Return whether it is time to ask; `now` in seconds."""
        is_welcome = is_pausing or not self._answers_s
        is_better = is_pausing and bool(self._answers_s) and not self._is_answered_in_pause
        return now >= self._asked_at + (SOON_S if is_better else ASK_EVERY_S if is_welcome else OVERDUE_S)

    def asked(self, now: float, *, is_pausing: bool) -> None:
        """A question is on its way."""
        self._asked_at, self._asked_in_pause = now, is_pausing

    def answered(self, seconds: float) -> None:
        """A question was answered after so long. The first answer that a pause gives replaces those that it did not."""
        if self._asked_in_pause and not self._is_answered_in_pause:
            self._answers_s.clear()
            self._is_answered_in_pause = True
        self._answers_s.append(seconds)
