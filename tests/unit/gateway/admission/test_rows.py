"""The batch that a request will meet, and what deciding by it does to the load."""

import pytest

from services.gateway.admission.rows import BatchOutlook, BatchRow

PREFILL_S, DECODE_S = 4.0, 6.0
MOST_ROWS = 20
ARRIVALS_PER_S = 10.0


def test_rows_join_and_leave() -> None:
    batch = BatchOutlook()
    for joins_at, ends_at in ((0.0, 5.0), (0.0, 20.0), (8.0, 30.0), (8.0, 9.0), (50.0, 60.0)):
        batch.add(BatchRow(joins_at, ends_at))
    assert batch.change(now=1.0, then=1.0) == 0
    assert batch.change(now=1.0, then=10.0) == 1 - 1
    assert batch.change(now=1.0, then=25.0) == 1 - 2
    assert batch.falls_by(0, 1.0) == 1.0
    assert batch.falls_by(2, 1.0) == 9.0
    assert batch.falls_by(6, 1.0) is None


def rows_over_time(*, foreseen: bool) -> list[int]:
    """Return the rows in each tenth of a second of a batch whose requests prefill first, with early rejection."""
    batch = BatchOutlook()
    found: list[int] = []
    for tick in range(600):
        now = tick / 10
        for row in [row for row in batch.rows if row.ends_at <= now]:
            batch.remove(row)
        running = sum(row.joins_at <= now for row in batch.rows)
        found.append(running)
        expected = running + batch.change(now, now + PREFILL_S) if foreseen else running
        if expected < MOST_ROWS:
            batch.add(BatchRow(now + PREFILL_S, now + PREFILL_S + DECODE_S))
    return found[200:]


def test_deciding_on_the_load_of_now_swings_and_on_the_load_to_come_does_not() -> None:
    swings, steady = rows_over_time(foreseen=False), rows_over_time(foreseen=True)
    assert max(swings) - min(swings) > MOST_ROWS
    assert max(steady) - min(steady) <= MOST_ROWS / 4
    assert max(steady) <= MOST_ROWS
    assert sum(steady) / len(steady) == pytest.approx(MOST_ROWS, rel=0.15)
