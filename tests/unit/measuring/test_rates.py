"""Rates over time, with a clock that stands still until it is told to move."""

import pytest

from shared.measuring.rates import MeanRate, MovingRate, RecentMean, RecentRate


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_recent_rate_is_told_soon_and_fades(clock: Clock) -> None:
    rate = RecentRate(clock, memory_s=10)
    assert rate.per_s == 0
    for _ in range(40):
        clock.now += 0.25
        rate.add()
    assert rate.per_s == pytest.approx(4, rel=0.05)
    clock.now += 10
    assert rate.per_s == pytest.approx(4 * 0.27, rel=0.1), "of twenty seconds the first ten weigh e^-1"
    clock.now += 100
    assert rate.per_s < 0.001


def test_one_event_at_the_start_is_not_a_thousand_a_second(clock: Clock) -> None:
    rate = RecentRate(clock)
    rate.add()
    assert rate.per_s == pytest.approx(1, rel=0.1)


def test_a_mean_rate_knows_no_time_but_what_is_stated() -> None:
    rate = MeanRate(memory_s=2)
    assert rate.per_s == 0
    rate.add(100, 0.5)
    assert rate.per_s == pytest.approx(200)
    for _ in range(100):
        rate.add(10, 0.5)
    assert rate.per_s == pytest.approx(20, rel=0.2)


def test_only_time_in_which_something_moved_counts_and_once(clock: Clock) -> None:
    rate = MovingRate(clock)
    for _ in range(3):
        with rate.moving():
            clock.now += 0.5
            with rate.moving():
                clock.now += 0.5
            rate.moved(1000)
        clock.now += 60
    assert rate.per_s == pytest.approx(1000, rel=0.1)


def test_what_fails_on_its_way_has_moved_nothing_but_ends(clock: Clock) -> None:
    rate = MovingRate(clock)
    with pytest.raises(RuntimeError), rate.moving():  # noqa: PT012 - time passes before it fails
        clock.now += 1
        raise RuntimeError
    clock.now += 60
    with rate.moving():
        clock.now += 1
    rate.moved(500)
    assert rate.per_s == pytest.approx(250, rel=0.2)


def test_a_recent_mean_begins_with_the_first_value_and_follows_the_latest() -> None:
    mean = RecentMean(newest_share=0.1)
    assert mean.value == 0
    mean.add(100.0)
    assert mean.value == 100
    mean.add(200.0)
    assert mean.value == pytest.approx(110)
    for _ in range(100):
        mean.add(200.0)
    assert mean.value == pytest.approx(200, abs=0.01)
