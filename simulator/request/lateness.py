"""How long decode waits for KV that does not come: the rule of real fetches, in simulated time."""

from collections.abc import Callable

from shared.patience import LOOKS_IN_PATIENCE, MOST_LOOKS
from simulator.events import EventLoop, SimTimer


class FetchPatience:
    """Calls `on_late` once, as `shared.patience.overdue` returns, unless it is ended before.

    Late is what has not come after `patience_s`, unless it comes within half as long again at the pace of the last
    half. `left` says how much has not come.
    """

    def __init__(
        self, loop: EventLoop, patience_s: float, left: Callable[[], float], on_late: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._every_s = patience_s / LOOKS_IN_PATIENCE
        self._left = left
        self._on_late = on_late
        self._before = left()
        self._num_looks = 0
        self._timer: SimTimer | None = loop.after(self._every_s, self._look)

    def end(self) -> None:
        """Everything has come, or is given up for another reason; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._num_looks += 1
        left = self._left()
        is_slow = self._num_looks >= LOOKS_IN_PATIENCE and left > self._before - left
        if is_slow or self._num_looks >= MOST_LOOKS:
            self._timer = None
            self._on_late()
            return
        self._before = left
        self._timer = self._loop.after(self._every_s, self._look)
