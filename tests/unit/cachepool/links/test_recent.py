"""A window over time in which a link was busy."""

import pytest

from services.cachepool.links.recent import Recent, agree


def test_a_window_has_what_was_seen_until_it_is_full() -> None:
    recent = Recent(1.0)
    assert recent.before(0.0) == (0.0, 0.0)
    recent.add(100, 0.4)
    assert recent.before(0.0) == (100, 0.4)
    recent.add(50, 0.4)
    assert recent.before(0.0) == pytest.approx((150, 0.8))


def test_a_full_window_cuts_the_oldest_piece() -> None:
    recent = Recent(1.0)
    for num_bytes in (1000, 100, 10):
        recent.add(num_bytes, 0.4)
    assert recent.before(0.0) == pytest.approx((10 + 100 + 500, 1.0))


def test_pending_time_takes_the_place_of_the_oldest() -> None:
    recent = Recent(1.0)
    recent.add(100, 1.0)
    assert recent.before(0.25) == pytest.approx((75, 1.0))
    assert recent.before(3.0) == (0.0, 3.0)


def test_very_many_small_pieces_are_few() -> None:
    recent = Recent(1.0)
    for _ in range(100_000):
        recent.add(1, 1e-4)
    assert recent.before(0.0) == pytest.approx((1e4, 1.0), rel=0.02)
    assert len(recent._pieces) < 130


def test_rates_agree_within_a_factor() -> None:
    assert agree(10, 14.9)
    assert agree(14.9, 10)
    assert not agree(10, 15.1)
    assert not agree(0, 1)
