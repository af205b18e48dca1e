"""How fast things go, over the last seconds: predicted work, and events. Pure."""

import math
from dataclasses import dataclass

MEMORY_S = 10.0
"""Work that was done so long ago counts for 1 / e of what is done now."""

PRIOR_S = 1.0
"""Before anything is measured, predictions are held to be right; they count as much as so many seconds of measuring."""

SLOWEST = 0.02
"""A worker that stands still would have waits without an end predicted."""


@dataclass(slots=True)
class WorkRate:
    """Seconds of predicted work that are done in a second in which there is some to do."""

    _work_s: float = PRIOR_S
    _busy_s: float = PRIOR_S
    _at: float = 0.0

    def note(self, done_s: float, now: float, is_busy: bool) -> None:
        """Note work that is done at `now`. `is_busy`: there was some to do since the last note."""
        elapsed_s = max(0.0, now - self._at)
        self._at = now
        if not is_busy:
            return
        kept = math.exp(-elapsed_s / MEMORY_S)
        self._work_s = self._work_s * kept + done_s
        self._busy_s = self._busy_s * kept + elapsed_s

    @property
    def value(self) -> float:
        return max(SLOWEST, self._work_s / self._busy_s) if self._busy_s > 0 else 1.0


EVENT_WEIGHT = 0.1
"""What the latest gap between two events counts for."""


@dataclass(slots=True)
class EventRate:
    """When the next of a stream of events is to be expected."""

    _gap_s: float | None = None
    _at: float | None = None

    def note(self, now: float) -> None:
        """Note an event."""
        if self._at is not None:
            gap_s = max(0.0, now - self._at)
            self._gap_s = gap_s if self._gap_s is None else self._gap_s + EVENT_WEIGHT * (gap_s - self._gap_s)
        self._at = now

    def next_in_s(self, now: float) -> float:
        """Return the seconds until the next event; where it is overdue, as long as it has been awaited."""
        if self._at is None or self._gap_s is None:
            return 1.0
        awaited_s = now - self._at
        return self._gap_s - awaited_s if awaited_s < self._gap_s else awaited_s
