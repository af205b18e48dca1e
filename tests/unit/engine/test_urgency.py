"""Earliest deadline first, ageing, priorities, inheritance."""

from hypothesis import given
from hypothesis import strategies as st

from shared.engine.urgency import AGEING, MAX_PRIORITY_S, PRIORITY_S, Urgency, sharing, yielding_tokens


def test_the_earlier_deadline_goes_first() -> None:
    assert Urgency(0, 10).rank < Urgency(0, 11).rank


def test_of_two_with_as_much_time_the_first_to_come_goes_first() -> None:
    assert Urgency(0, 10).rank < Urgency(1, 11).rank


def test_a_level_of_priority_is_worth_a_minute_of_deadline() -> None:
    assert Urgency(0, 100, 0).rank == Urgency(0, 100 + PRIORITY_S, -1).rank
    assert Urgency(0, 100, -1).rank < Urgency(0, 100, 0).rank < Urgency(0, 100, 1).rank


@given(
    start=st.floats(0, 1e5),
    patience=st.floats(1, 600),
    hurry=st.floats(1, 600),
    low=st.integers(-(2**31), 2**31 - 1),
    high=st.integers(-(2**31), 2**31 - 1),
    late=st.floats(0, 60),
)
def test_nothing_is_overtaken_for_ever(
    start: float, patience: float, hurry: float, low: int, high: int, late: float
) -> None:
    """Whoever arrives later than the bound goes after, whatever its deadline and priority."""
    bound = max(0.0, patience - hurry + 2 * MAX_PRIORITY_S) / (1 + AGEING)
    arrived = start + bound + late + 0.01
    assert Urgency(start, start + patience, low).rank < Urgency(arrived, arrived + hurry, high).rank


def test_a_lender_makes_another_as_urgent_as_it_is_itself() -> None:
    slow, quick, quickest = Urgency(0, 100), Urgency(0, 50), Urgency(0, 10)
    own = slow.rank
    with quick.lend(to=slow):
        assert slow.rank == quick.rank
        with quickest.lend(to=quick):
            assert slow.rank == quickest.rank
        with Urgency(0, 200).lend(to=slow):
            assert slow.rank == quick.rank, "a less urgent one changes nothing"
    assert slow.rank == own


def test_a_prompt_has_the_priority_of_who_waits_for_it() -> None:
    flood, other = Urgency(0, 100, 10), Urgency(0, 100)
    assert (flood.priority, flood.stands_back) == (10, True)
    with other.lend(to=flood):
        assert (flood.priority, flood.stands_back) == (0, False)


def test_a_step_is_shared_with_none_that_stands_back() -> None:
    flood, other, urgent = Urgency(0, 100, 10), Urgency(0, 100), Urgency(0, 100, -1)
    assert sharing([urgent, other, flood], lambda urgency: urgency) == [urgent, other]
    assert sharing([flood, other], lambda urgency: urgency) == [flood, other]
    assert sharing([], lambda urgency: urgency) == []


def test_a_step_of_prompts_that_stand_back_has_whole_blocks() -> None:
    assert [yielding_tokens(chunk, 64) for chunk in (64, 128, 512, 960)] == [64, 64, 128, 192]
