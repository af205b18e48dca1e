"""The speed of a link, with a clock that stands still until it is told to move."""

import pytest

from services.cachepool.links.goodput import WINDOW_S, Goodput
from services.cachepool.links.recent import agree
from tests.support.samples import ManualClock

FAST, SLOW = 1000, 100
STEP_S = 0.05


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def goodput(clock: ManualClock) -> Goodput:
    return Goodput(clock)


def carry(goodput: Goodput, clock: ManualClock, rate: float, seconds: float, lane: str = "messages") -> None:
    """Let one stream bring what a link of this rate does, steadily."""
    for _ in range(round(seconds / STEP_S)):
        clock.advance(STEP_S)
        if lane == "messages":
            goodput.arrived("a", int(rate * STEP_S), more=True)
        else:
            goodput.carried("a", int(rate * STEP_S), STEP_S)


def test_nothing_is_known_until_the_link_was_busy(clock: ManualClock, goodput: Goodput) -> None:
    goodput.arrived("a", 1000, more=False)
    clock.advance(1)
    goodput.arrived("a", 1000, more=False)
    assert goodput.bytes_per_s == goodput.usual_bytes_per_s == 0.0


def test_only_time_in_which_something_was_owed_counts(clock: ManualClock, goodput: Goodput) -> None:
    goodput.arrived("a", 500, more=True)  # nobody knows when it set out
    clock.advance(1)
    goodput.arrived("a", 1000, more=False)
    clock.advance(60)  # prefill computes
    goodput.arrived("a", 7, more=True)
    clock.advance(1)
    goodput.arrived("a", 1000, more=False)
    assert goodput.bytes_per_s == pytest.approx(1000)


def test_streams_of_one_link_add_up_and_their_ends_owe_nothing(clock: ManualClock, goodput: Goodput) -> None:
    goodput.arrived("a", 0, more=True)
    goodput.arrived("b", 0, more=True)
    for _ in range(4):
        clock.advance(0.25)
        goodput.arrived("a", 100, more=True)
        goodput.arrived("b", 100, more=True)
    assert goodput.bytes_per_s == pytest.approx(800, rel=0.1)
    goodput.ended("a")
    goodput.ended("b")
    clock.advance(1000)
    assert goodput.bytes_per_s == pytest.approx(800, rel=0.1)


def test_time_that_two_peers_connections_were_busy_with_counts_once(clock: ManualClock, goodput: Goodput) -> None:
    for _ in range(40):
        clock.advance(STEP_S)
        goodput.carried("a", 50, STEP_S)
        goodput.carried("b", 50, STEP_S)
    assert goodput.bytes_per_s == pytest.approx(100 / STEP_S, rel=0.1)


def test_a_batch_that_the_event_loop_takes_late_keeps_its_time(clock: ManualClock, goodput: Goodput) -> None:
    for late_s in (0.0, 0.04) * 20:
        clock.advance(STEP_S + (late_s or -0.04))
        goodput.carried("a", 50, STEP_S)
    assert goodput.bytes_per_s == pytest.approx(50 / STEP_S, rel=0.1)


@pytest.mark.parametrize("lane", ["messages", "sockets"])
def test_a_fall_to_a_tenth_is_known_after_a_window_and_a_return_too(
    clock: ManualClock, goodput: Goodput, lane: str
) -> None:
    goodput.arrived("a", 0, more=lane == "messages")
    for rate in (FAST, SLOW, FAST):
        carry(goodput, clock, rate, 8 * WINDOW_S, lane)
        assert goodput.bytes_per_s == pytest.approx(rate, rel=0.2)
        carry(goodput, clock, FAST + SLOW - rate, 1.0, lane)
        assert agree(goodput.bytes_per_s, FAST + SLOW - rate)
        carry(goodput, clock, rate, 1.0, lane)


def test_what_every_connection_does_now_and_then_is_no_fall(clock: ManualClock, goodput: Goodput) -> None:
    goodput.arrived("a", 0, more=True)
    carry(goodput, clock, FAST, 5)
    for _ in range(10):
        clock.advance(WINDOW_S / 4)  # a lost packet
        assert goodput.bytes_per_s == pytest.approx(FAST, rel=0.3)
        goodput.arrived("a", 1, more=True)
        carry(goodput, clock, FAST, 1)
        assert goodput.bytes_per_s == pytest.approx(FAST, rel=0.3)


def test_the_figure_falls_while_something_is_owed_and_nothing_comes(clock: ManualClock, goodput: Goodput) -> None:
    goodput.arrived("a", 0, more=True)
    carry(goodput, clock, FAST, 5)
    clock.advance(1)
    after_one_s = goodput.bytes_per_s
    assert after_one_s < FAST / 10
    clock.advance(9)
    assert 0 < goodput.bytes_per_s < after_one_s / 5
    assert goodput.usual_bytes_per_s == pytest.approx(FAST, rel=0.1), "a silence is no reason for more patience"


def test_a_batch_that_does_not_come_is_seen_from_its_connection(clock: ManualClock, goodput: Goodput) -> None:
    pending_s = 0.0
    goodput.watch("a", lambda: pending_s)
    carry(goodput, clock, FAST, 5, "sockets")
    pending_s = 0.2
    assert goodput.bytes_per_s == pytest.approx(FAST, rel=0.1)
    pending_s = 3.0
    assert goodput.bytes_per_s < FAST / 10
    goodput.ended("a")
    assert goodput.bytes_per_s == pytest.approx(FAST, rel=0.1), "nobody knows whether the rest would have come"


def test_a_link_that_carried_nothing_for_long_is_not_an_unknown_one(clock: ManualClock, goodput: Goodput) -> None:
    goodput.arrived("a", 0, more=True)
    carry(goodput, clock, FAST, 5)
    clock.advance(1e4)
    goodput.ended("a")
    assert 0 < goodput.bytes_per_s <= 1


def test_what_a_probe_found_is_believed_until_transfers_say_something_else(
    clock: ManualClock, goodput: Goodput
) -> None:
    goodput.arrived("a", 0, more=True)
    carry(goodput, clock, SLOW, 5)
    goodput.ended("a")
    goodput.probed(FAST, 0.1)
    assert goodput.bytes_per_s == FAST
    assert not goodput.is_sure
    goodput.arrived("b", 0, more=True)
    carry(goodput, clock, SLOW, 2)
    assert agree(goodput.bytes_per_s, SLOW)
    assert goodput.is_sure
