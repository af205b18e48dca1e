"""When a process that died is started again, and from when on that is pointless. Pure: time is handed in."""

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class RestartPolicy:
    first_delay_s: float = 0.5  # doubles with each death that follows
    longest_delay_s: float = 30.0
    settled_s: float = 60.0  # a process that ran this long has recovered: its next delay is the first again
    max_deaths: int = 5
    window_s: float = 60.0  # max_deaths within it are too many


class Restarts:
    """The deaths of one process, as far as they matter for its next start."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._recent: deque[float] = deque(maxlen=policy.max_deaths)
        self._delay_s = policy.first_delay_s

    def died(self, started_s: float, now_s: float) -> float | None:
        """Count a death; return how long to wait before the next start, or None when there have been too many."""
        policy = self._policy
        self._recent.append(now_s)
        if len(self._recent) == policy.max_deaths and now_s - self._recent[0] < policy.window_s:
            return None
        if now_s - started_s >= policy.settled_s:
            self._delay_s = policy.first_delay_s
        delay_s = self._delay_s
        self._delay_s = min(2 * delay_s, policy.longest_delay_s)
        return delay_s
