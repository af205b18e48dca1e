"""What a worker was given: sums that are kept, not made."""

import pytest

from services.gateway.cluster.assigned import Assigned, Assignment, PromptWork
from shared.ids import WorkerId


def calls(num_calls: int) -> list[Assignment]:
    """Return calls whose figures binary fractions cannot write, one a second."""
    return [
        Assignment(WorkerId("w"), PromptWork(0.1 * number, 10.3 * number, 1e6 / number), at=float(number))
        for number in range(1, num_calls + 1)
    ]


def total(given: list[Assignment]) -> PromptWork:
    return PromptWork(*(sum(figures) for figures in zip(*(call.work for call in given), strict=True)))


def test_work_counts_from_the_call_to_its_end_or_to_the_report_that_knows_of_it() -> None:
    assigned, given = Assigned(), calls(6)
    for call in given:
        assigned.add(call)
    assert assigned.unreported_work == pytest.approx(total(given))
    assigned.remove(given[4])
    assigned.reported(2.0)
    assigned.remove(given[0])  # the report counts it
    assert assigned.unreported_work == pytest.approx(total([given[2], given[3], given[5]]))
    assert assigned.num_open == 4


def test_nothing_is_left_of_work_that_has_ended() -> None:
    assigned, given = Assigned(), calls(50)
    for call in given:
        assigned.add(call)
    for call in given[::2] + given[1::2]:
        assigned.remove(call)
        assert min(assigned.unreported_work) >= 0
    assert (assigned.num_open, assigned.unreported_work) == (0, PromptWork())
    for call in given:
        assigned.add(call)
    assigned.reported(1e9)
    assert (assigned.num_open, assigned.unreported_work) == (50, PromptWork())
