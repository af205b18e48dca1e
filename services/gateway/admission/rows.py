"""The batch of a decode worker at a later time: who will have joined it by then, and who will have left. Pure.

Mooncake (FAST'25, section 7) decides on the load predicted for when prefill ends. Who decides on the load of now admits
too much while prompts are being computed and too little while their answers are: the load swings between both.
"""

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class BatchRow:
    """A request of this gateway in a batch, or on its way there. Times are predictions."""

    joins_at: float
    ends_at: float


@dataclass(slots=True)
class BatchOutlook:
    """The requests that this gateway has at one decode worker."""

    rows: set[BatchRow] = field(default_factory=set)

    def add(self, row: BatchRow) -> None:
        self.rows.add(row)

    def remove(self, row: BatchRow) -> None:
        self.rows.discard(row)

    def change(self, now: float, then: float) -> int:
        """Return how many rows more the batch has at `then`. Who should have ended and has not is about to."""
        joining = sum(now < row.joins_at <= then < row.ends_at for row in self.rows)
        leaving = sum(row.joins_at <= now and row.ends_at <= then for row in self.rows)
        return joining - leaving

    def falls_by(self, num_rows: int, now: float) -> float | None:
        """Return when so many rows will have left that are there or on their way; None: there are fewer."""
        if num_rows <= 0:
            return now
        ends = sorted(row.ends_at for row in self.rows)
        return max(now, ends[num_rows - 1]) if num_rows <= len(ends) else None
