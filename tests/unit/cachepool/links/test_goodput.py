"""The speed of a link, with a clock that stands still until it is told to move."""

import pytest

from services.cachepool.links.goodput import Goodput


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_nothing_is_known_until_the_link_was_busy(clock: Clock) -> None:
    goodput = Goodput(clock)
    goodput.arrived("a", 1000, more=False)
    clock.now += 1
    goodput.arrived("a", 1000, more=False)
    assert goodput.bytes_per_s == 0.0


def test_only_time_in_which_something_was_owed_counts(clock: Clock) -> None:
    goodput = Goodput(clock)
    goodput.arrived("a", 500, more=True)  # nobody knows when it set out
    clock.now += 1
    goodput.arrived("a", 1000, more=False)
    clock.now += 60  # prefill computes
    goodput.arrived("a", 7, more=True)
    clock.now += 1
    goodput.arrived("a", 1000, more=False)
    assert goodput.bytes_per_s == pytest.approx(1000)


def test_streams_of_one_link_add_up_and_their_ends_owe_nothing(clock: Clock) -> None:
    goodput = Goodput(clock)
    goodput.arrived("a", 0, more=True)
    goodput.arrived("b", 0, more=True)
    for _ in range(4):
        clock.now += 0.25
        goodput.arrived("a", 100, more=True)
        goodput.arrived("b", 100, more=True)
    assert goodput.bytes_per_s == pytest.approx(800, rel=0.1)
    goodput.ended("a")
    goodput.ended("b")
    clock.now += 1000
    assert goodput.bytes_per_s == pytest.approx(800, rel=0.1)


def test_the_estimate_follows_a_link_that_changes(clock: Clock) -> None:
    goodput = Goodput(clock, memory_s=2.0)
    goodput.arrived("a", 0, more=True)
    for speed, expected in ((1000, 1000), (100, 110)):
        for _ in range(100):
            clock.now += 0.1
            goodput.arrived("a", speed // 10, more=True)
        assert goodput.bytes_per_s == pytest.approx(expected, rel=0.1)
