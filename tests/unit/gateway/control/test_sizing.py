"""How many instances a rate takes; the numbers of the small case can be worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.control.settled import Settled
from services.gateway.control.sizing import Replicas, fewest_replicas, is_worth_it, resized, sustained_per_s, thresholds
from services.gateway.routing.planning.case import PlanningCase, PrfaasCluster, WideLink
from services.gateway.routing.planning.profiles import PolynomialProfile
from tests.support.planning import by_hand, planning_cases

GRID = np.array([0.0, 100.0, 200.0, 300.0, 600.0])


def test_the_fewest_instances_are_all_away_where_they_are_three_times_as_fast() -> None:
    case = by_hand()  # mean of 1, 4, 9, 36 s away: 12.5 s; decode takes 10 * 0.5 / 2 = 2.5 s
    assert fewest_replicas(case, 1.0, GRID) == Replicas(13, 0, 3)
    assert fewest_replicas(case, 0.0, GRID) == Replicas(0, 0, 1)


def test_what_a_link_does_not_carry_is_prefilled_at_home() -> None:
    narrow = by_hand(link=WideLink(8.0 * 0.15))  # 150 MB/s; requests have 300 MB on average
    found = fewest_replicas(narrow, 1.0, GRID)
    assert found == Replicas(9, 11, 3)  # 600 tokens away, 36 / 4 s; the others at home, 3 * (1 + 4 + 9) / 4 s


def test_where_nobody_prefills_away_nothing_is_offloaded() -> None:
    alone = by_hand(prfaas=PrfaasCluster(PolynomialProfile((0.0, 0.0, 1.0), 100), (0,)))
    assert fewest_replicas(alone, 1.0, GRID) == Replicas(0, 38, 3)


@given(planning_cases(), st.floats(0.001, 10))
def test_the_fewest_instances_sustain_the_rate(case: PlanningCase, requests_per_s: float) -> None:
    grid = thresholds(case, 64)
    found = fewest_replicas(case, requests_per_s, grid)
    assert sustained_per_s(case, found, grid) >= requests_per_s * (1 - 1e-6)


def test_a_change_is_worth_it_for_a_tenth_of_the_rate() -> None:
    case, held = by_hand(), Replicas(13, 0, 3)
    assert sustained_per_s(case, held, GRID) == pytest.approx(1.04)
    assert not is_worth_it(case, held, Replicas(14, 0, 3), 1.1, GRID)
    assert is_worth_it(case, held, Replicas(15, 0, 3), 1.2, GRID)
    assert not is_worth_it(case, held, Replicas(12, 0, 3), 0.95, GRID)
    assert is_worth_it(case, held, Replicas(9, 0, 2), 0.7, GRID)


def test_as_many_instances_are_divided_anew_when_that_gains_enough() -> None:
    assert is_worth_it(by_hand(), Replicas(12, 1, 3), Replicas(13, 0, 3), 0.5, GRID) is False
    assert is_worth_it(by_hand(), Replicas(5, 0, 11), Replicas(13, 0, 3), 0.4, GRID)


def test_a_change_waits_for_three_looks_in_a_row() -> None:
    case, held = by_hand(), Settled(Replicas(13, 0, 3))
    for _ in range(2):
        held = resized(case, held, 2.0, GRID)
        assert held.value == Replicas(13, 0, 3)
    assert resized(case, held, 1.0, GRID) == Settled(Replicas(13, 0, 3))  # one look that is content begins anew
    assert resized(case, held, 2.0, GRID) == Settled(Replicas(25, 0, 5))


@given(st.lists(st.floats(-0.09, 0.09), min_size=20, max_size=60), st.floats(0.5, 3.0))
def test_noise_below_what_is_worth_a_change_changes_nothing(noise: list[float], rate_per_s: float) -> None:
    case, held, seen = by_hand(), Settled(Replicas(1, 1, 1)), []
    for _ in range(3):
        held = resized(case, held, rate_per_s, GRID)
    for share in noise:
        held = resized(case, held, rate_per_s * (1 + share), GRID)
        seen.append(held.value)
    assert len(set(seen)) == 1
