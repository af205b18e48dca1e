"""The engines of one role: what they have reported, and what this gateway has given them since."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from services.gateway.cluster.assigned import Assigned, Assignment
from services.gateway.cluster.workers import WORKER, Member, Rows, Workers, new_row
from shared.ids import WorkerId

STALE_AFTER_S = 6.0
"""Three missed membership beats; load events, which come more often, count as signs of life too."""

SEEN_SMOOTHING = 0.05
"""What the latest request weighs in the share of requests that found a worker busy."""

LEAST_WAIT_S, LEAST_WAIT = 0.02, 0.25
"""A worker is found busy by whom it lets wait so long, and so large a part of what it then does for them: reports are
not exact to the last moment."""


class RoleFleet:
    """All engines of one role that were ever announced, in the order in which they were."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.rows: Rows = np.zeros(0, WORKER)
        self.assigned: list[Assigned] = []
        self.in_use: set[int] = set()  # rows with open calls of this gateway
        self.heard_at = np.zeros(0)
        self.seen_busy = np.zeros(0)
        self.is_fit = np.zeros(0, bool)  # but for its silence

    def add(self, member: Member, dc: int) -> int:
        """Return the row of a new worker."""
        number = len(self.members)
        self.members.append(member)
        self.assigned.append(Assigned())
        self.rows = np.append(self.rows, new_row(number, dc))
        self.heard_at = np.append(self.heard_at, 0.0)
        self.seen_busy = np.append(self.seen_busy, 0.0)
        self.is_fit = np.append(self.is_fit, False)
        return number

    def begin_anew(self, row: int, dc: int) -> None:
        """Forget what an earlier process of the worker has said."""
        self.rows[row : row + 1] = new_row(row, dc)

    def usable(self, newest_at: float, now: float, waits: Mapping[int, float]) -> Workers:
        """Return the workers that are fit and not silent, their figures as of now.

        `waits`: seconds that are waited before a worker is sent anything, by its number.
        """
        chosen = (self.is_fit & (newest_at - self.heard_at <= STALE_AFTER_S)).nonzero()[0]
        rows = self.rows.take(chosen)  # thrice as quick as indexing, with rows of so many columns
        worked_s = np.maximum(0.0, now - self.heard_at[chosen])
        left = np.maximum(0.0, 1 - worked_s / np.maximum(rows["queued_s"], 1e-9))
        rows["queued_s"] *= left
        rows["queued_tokens"] *= left
        rows["seen_busy"] = self.seen_busy[chosen]
        if self.in_use:
            for row, number in _found(rows, np.array(sorted(self.in_use), np.intp)):
                _add_assigned(rows[row : row + 1], self.assigned[number])
        if waits:
            for row, number in _found(rows, np.array(sorted(waits), np.intp)):
                rows["queued_s"][row] += waits[number]
        return Workers(self.members, rows)

    def assign(self, assignment: Assignment) -> None:
        row = assignment.row
        is_busy = self._queued_s(row, assignment.at) > max(LEAST_WAIT_S, LEAST_WAIT * assignment.work.seconds)
        self.seen_busy[row] += SEEN_SMOOTHING * (is_busy - self.seen_busy[row])
        self.assigned[row].add(assignment)
        self.in_use.add(row)

    def lose_silent(self, newest_at: float) -> dict[WorkerId, int]:
        """End the calls to workers that are silent; return how many of each."""
        silent = [row for row in self.in_use if newest_at - self.heard_at[row] > STALE_AFTER_S]
        lost = {self.members[row].worker: self.assigned[row].lose() for row in silent}
        return {worker: count for worker, count in lost.items() if count}

    def release(self, assignment: Assignment) -> None:
        row = assignment.row
        self.assigned[row].remove(assignment)
        if not self.assigned[row].num_open:
            self.in_use.discard(row)

    def _queued_s(self, row: int, now: float) -> float:
        reported = float(self.rows["queued_s"][row]) - (now - float(self.heard_at[row]))
        return max(0.0, reported) + self.assigned[row].unreported_work.seconds


def _found(rows: Rows, numbers: NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """Yield the row and the number of each of these workers that there is a row of."""
    at = np.searchsorted(rows["number"], numbers)
    for row, number in zip(at.tolist(), numbers.tolist(), strict=True):
        if row < len(rows) and rows["number"][row] == number:
            yield row, number


def _add_assigned(row: Rows, assigned: Assigned) -> None:
    work = assigned.unreported_work
    row["queued_s"] += work.seconds
    row["queued_tokens"] += work.tokens
    row["context_tokens"] += work.context_tokens
    row["free_tokens"] -= work.context_tokens
    row["requests"] = np.maximum(row["requests"], assigned.num_open)
