"""The round trip of a link: when it is asked for, and which answers count."""

import pytest

from services.cachepool.links.round_trip import ASK_EVERY_S, NUM_KEPT, OVERDUE_S, SOON_S, RoundTrip


def answer(trip: RoundTrip, now: float, seconds: float, *, is_pausing: bool = True) -> None:
    trip.asked(now, is_pausing=is_pausing)
    trip.answered(seconds)


def test_a_new_link_is_asked_at_once_and_a_pausing_one_again_and_again() -> None:
    trip = RoundTrip()
    assert trip.seconds == 0.0
    assert trip.is_due(0.0, is_pausing=False)
    answer(trip, 0.0, 0.03)
    assert not trip.is_due(ASK_EVERY_S - 0.1, is_pausing=True)
    assert trip.is_due(ASK_EVERY_S, is_pausing=True)


def test_a_link_that_carries_is_asked_hardly_ever() -> None:
    trip = RoundTrip()
    answer(trip, 0.0, 0.03)
    assert not trip.is_due(OVERDUE_S - 1, is_pausing=False)
    assert trip.is_due(OVERDUE_S, is_pausing=False)


def test_the_least_of_the_last_answers_counts() -> None:
    trip = RoundTrip()
    for now, seconds in enumerate([0.05, 0.03, 0.2]):
        answer(trip, float(now), seconds)
    assert trip.seconds == 0.03
    for now in range(NUM_KEPT):
        answer(trip, 10.0 + now, 0.08)  # another route
    assert trip.seconds == 0.08


def test_the_first_answer_of_a_pause_replaces_what_queues_made() -> None:
    trip = RoundTrip()
    answer(trip, 0.0, 0.9, is_pausing=False)
    assert trip.seconds == 0.9
    assert trip.is_due(SOON_S, is_pausing=True)
    answer(trip, 1.0, 0.03)
    assert trip.seconds == 0.03
    answer(trip, 2.0, 0.9, is_pausing=False)
    assert trip.seconds == 0.03
    assert not trip.is_due(2.0 + SOON_S, is_pausing=True)


@pytest.mark.parametrize("is_pausing", [True, False])
def test_a_question_without_an_answer_is_put_again(is_pausing: bool) -> None:
    trip = RoundTrip()
    trip.asked(0.0, is_pausing=is_pausing)
    assert trip.is_due(ASK_EVERY_S, is_pausing=is_pausing)
