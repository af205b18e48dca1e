"""The round trip of a link: the least of what the last questions took that crossed it while it paused. Pure."""

from collections import deque

ASK_EVERY_S = 5.0
"""Seconds between questions, while the link pauses."""

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
        self._asked_at: float | None = None

    @property
    def seconds(self) -> float:
        """0 until a question was answered."""
        return min(self._answers_s, default=0.0)

    def is_due(self, now: float, *, is_pausing: bool) -> bool:
        """Return whether it is time to ask; `now` in seconds."""
        if self._asked_at is None:
            return True
        patience_s = ASK_EVERY_S if is_pausing or not self._answers_s else OVERDUE_S
        return now >= self._asked_at + patience_s

    def asked(self, now: float) -> None:
        """A question is on its way."""
        self._asked_at = now

    def answered(self, seconds: float) -> None:
        """A question was answered after so long."""
        self._answers_s.append(seconds)
