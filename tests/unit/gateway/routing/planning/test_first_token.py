"""The time to the first token of an empty system."""

import pytest

from services.gateway.routing.planning.case import WideLink
from services.gateway.routing.planning.first_token import unloaded_ttft
from services.gateway.routing.planning.lengths import EmpiricalLengths
from tests.support.planning import by_hand


def test_short_requests_compute_at_home_and_long_ones_compute_away_and_cross_the_link() -> None:
    ttft = unloaded_ttft(by_hand(), 200)
    assert ttft.mean_s == pytest.approx((3 + 12 + (9 + 0.3) + (36 + 0.6)) / 4)
    assert ttft.p90_s == pytest.approx(36.6)


def test_only_the_usable_share_of_the_link_carries() -> None:
    assert unloaded_ttft(by_hand(link=WideLink(8, 0.1)), 200).p90_s == pytest.approx(42)


def test_the_90th_percentile_is_of_times_not_of_lengths() -> None:
    lengths = EmpiricalLengths.of([100] * 8 + [400, 500])
    # At home 400 tokens take 48 s; away 500 tokens take 25.5 s.
    assert unloaded_ttft(by_hand(lengths=lengths), 400).p90_s == pytest.approx(25.5)
    assert unloaded_ttft(by_hand(lengths=lengths), 500).p90_s == pytest.approx(48)


def test_nothing_crosses_where_nothing_is_long() -> None:
    assert unloaded_ttft(by_hand(), 600).p90_s == pytest.approx(108)
