"""When a link is probed and what is believed, against a model of a link that is slow to start."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from services.cachepool.links.probing import (
    LEAST_BYTES,
    MAX_PAUSE_S,
    MOST_BYTES,
    QUIET_S,
    SAVED_S,
    SHARE,
    STALE_S,
    Probing,
)
from services.cachepool.links.recent import agree

ROUND_TRIP_S = 0.04
FAST, SLOW = 25e6, 2.5e6
TICK_S = 0.1


@dataclass
class Link:
    """What lies there: TCP doubles from a first window, up to the rate."""

    rate: float
    now: float = 0.0
    known: float = 0.0
    cost_bytes: int = 0
    rows: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.probing = Probing(self.now)

    def carry(self, seconds: float) -> None:
        """Let ordinary transfers go, that make known what the link is."""
        end = self.now + seconds
        while self.now < end:
            self.known = self.rate
            self.probing.carried(self.now)
            self.probing.saw(self.now, self.known, is_sure=True)
            self.now += TICK_S

    def pause(self, seconds: float) -> None:
        """Let nobody ask anything, and probes do what they may."""
        end = self.now + seconds
        while self.now < end:
            self.probing.saw(self.now, self.known, is_sure=False)
            self._row()
            self.now += TICK_S

    def until(self, rate: float, limit_s: float = 60.0) -> float:
        """Return how long it takes until a rate is known."""
        began = self.now
        while not agree(self.known, rate):
            self.pause(TICK_S)
            assert self.now - began < limit_s
        return self.now - began

    def _row(self) -> None:
        size, window = self.probing.next_bytes(self.now, self.known), 8 * 14e3
        if size:
            self.rows.append([])
        while size:
            self.rows[-1].append(size)
            self.cost_bytes += size
            left = seen_bytes = size * 63 / 64  # the first message is not counted
            spent_s = 0.0
            while left > 0:
                step_s = max(ROUND_TRIP_S if left > window else 0.0, min(left, window) / self.rate)
                spent_s, left, window = spent_s + step_s, left - window, window * 2
            self.now += spent_s
            seen = seen_bytes / max(spent_s, 0.01)
            self.known = self.probing.ended(self.now, seen, self.known, ROUND_TRIP_S) or self.known
            size = self.probing.next_bytes(self.now, self.known)


@pytest.fixture
def link() -> Link:
    link = Link(FAST)
    link.carry(10)
    return link


def test_nothing_is_probed_where_nothing_was_known() -> None:
    link = Link(FAST)
    link.pause(STALE_S * 2)
    assert link.rows == []


def test_a_link_that_carries_or_is_as_good_as_ever_is_left_alone(link: Link) -> None:
    link.pause(STALE_S - 1)
    assert link.rows == []


def test_a_fallen_link_is_probed_in_its_first_pause_and_then_less_often(link: Link) -> None:
    link.rate = SLOW
    link.carry(5)
    assert link.rows == []
    link.pause(QUIET_S + 2 * TICK_S)
    assert len(link.rows) == 1
    link.pause(60)
    assert 60 / (MAX_PAUSE_S + 1) - 1 <= len(link.rows) <= 60 / MAX_PAUSE_S + 3
    assert agree(link.known, SLOW)


def test_a_return_is_known_within_a_pause_and_some_round_trips(link: Link) -> None:
    link.rate = SLOW
    link.carry(5)
    link.pause(30)
    link.rate = FAST
    assert link.until(FAST) < MAX_PAUSE_S + 1.0
    num_rows = len(link.rows)
    link.pause(STALE_S / 2)
    assert len(link.rows) == num_rows


def test_probes_take_their_share_of_the_best_and_no_more(link: Link) -> None:
    link.rate = SLOW
    link.carry(5)
    link.pause(600)
    assert link.cost_bytes < FAST * (SAVED_S + SHARE * 600)
    assert link.cost_bytes < SHARE * FAST * 600, "it is less than the share, as a rule"


def test_a_very_slow_link_waits_for_its_share() -> None:
    link = Link(4e5)
    link.carry(10)
    link.rate = 1e4
    link.carry(5)
    link.pause(600)
    assert link.cost_bytes < 4e5 * (SAVED_S + SHARE * 600) + LEAST_BYTES
    link.rate = 4e5
    assert agree(link.known, 1e4)
    link.until(4e5, limit_s=120)


def test_a_link_that_paused_for_very_long_is_looked_at(link: Link) -> None:
    link.pause(STALE_S - 10)
    link.rate = SLOW
    link.pause(30)
    assert agree(link.known, SLOW)


def test_slow_starts_do_not_make_a_fast_link_slow() -> None:
    link = Link(1.25e9)
    link.carry(10)
    link.pause(STALE_S + 60)
    assert link.rows
    assert link.known == 1.25e9
    assert max(map(max, link.rows)) <= MOST_BYTES


def test_one_quick_probe_is_not_believed(link: Link) -> None:
    link.known = SLOW
    size = 0
    while not size:
        link.now += TICK_S
        link.probing.saw(link.now, SLOW, is_sure=False)
        size = link.probing.next_bytes(link.now, SLOW)
    assert link.probing.ended(link.now, FAST, SLOW, ROUND_TRIP_S) == 0.0
    assert link.probing.next_bytes(link.now, SLOW) == 2 * size
    assert link.probing.ended(link.now, SLOW, SLOW, ROUND_TRIP_S) == 0.0
    assert link.probing.next_bytes(link.now, SLOW) == 0


def test_who_must_give_way_asks_later_and_later(link: Link) -> None:
    link.known = SLOW
    asked_at: list[float] = []
    while len(asked_at) < 6:
        link.now += TICK_S
        link.probing.saw(link.now, SLOW, is_sure=False)
        if link.probing.next_bytes(link.now, SLOW):
            asked_at.append(link.now)
            link.probing.failed(link.now)
    pauses = [after - before for before, after in pairwise(asked_at)]
    assert pauses == pytest.approx([QUIET_S, 2 * QUIET_S, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S], abs=2 * TICK_S)
