"""The search finds what comparing all plans one by one finds, and Lambda behaves as the equations say."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.routing.planning.capacity import plan_of
from services.gateway.routing.planning.case import (
    Averaging,
    Division,
    PlanningCase,
    PrfaasCluster,
    WideLink,
    threshold_grid,
)
from services.gateway.routing.planning.lengths import TruncatedLogNormal
from services.gateway.routing.planning.profiles import PolynomialProfile, ScaledProfile
from services.gateway.routing.planning.search import rate_surface
from tests.support.planning import by_hand, planning_cases, some_thresholds

SLACK = 1 + 1e-9


def best_rate(case: PlanningCase) -> float:
    return float(rate_surface(case, some_thresholds(case)).requests_per_s.max())


@given(planning_cases())
def test_the_surface_holds_what_single_plans_say(case: PlanningCase) -> None:
    thresholds = some_thresholds(case, 5)
    surface = rate_surface(case, thresholds)
    assert not np.isnan(surface.requests_per_s).any()
    for r, num_prfaas in enumerate(case.prfaas.instances):
        for p, num_prefill in enumerate(surface.prefill_instances):
            for t, threshold in enumerate(thresholds):
                plan = plan_of(case, Division(threshold, num_prfaas, num_prefill, case.pd.instances - num_prefill))
                assert surface.requests_per_s[r, p, t] == pytest.approx(plan.requests_per_s, rel=1e-3, abs=1e-12)


@given(planning_cases())
def test_the_chosen_plan_is_within_every_stages_bound_and_no_division_is_better(case: PlanningCase) -> None:
    surface = rate_surface(case, some_thresholds(case))
    plan = plan_of(case, surface.best())
    assert plan.requests_per_s == pytest.approx(surface.requests_per_s.max(), rel=1e-3)
    assert plan.prfaas_instances in case.prfaas.instances
    assert plan.prefill_instances + plan.decode_instances == case.pd.instances
    p = plan.long_share
    assert 0 <= p <= 1
    assert plan.requests_per_s <= plan.pd_decode_per_s * SLACK
    if plan.prfaas_compute_per_s is not None and plan.link_per_s is not None:
        assert plan.requests_per_s * p <= min(plan.prfaas_compute_per_s, plan.link_per_s) * SLACK
    if plan.pd_prefill_per_s is not None:
        assert plan.requests_per_s * (1 - p) <= plan.pd_prefill_per_s * SLACK
    assert plan.ttft_mean_s > 0
    if case.averaging is Averaging.MEAN_TIME:
        assert plan.link_share <= case.link.usable_share * SLACK


@given(planning_cases(), st.floats(1, 100))
def test_more_of_anything_never_lowers_lambda(case: PlanningCase, factor: float) -> None:
    before = best_rate(case)
    more_link = replace(case, link=replace(case.link, capacity_gbit_s=case.link.capacity_gbit_s * factor))
    more_instances = replace(case, pd=replace(case.pd, instances=case.pd.instances + 1))
    more_prfaas = replace(
        case, prfaas=replace(case.prfaas, instances=tuple(number + 1 for number in case.prfaas.instances))
    )
    faster = replace(case, prfaas=replace(case.prfaas, prefill_s=ScaledProfile(case.prfaas.prefill_s, 1 / factor)))
    for better in (more_link, more_instances, more_prfaas, faster):
        assert best_rate(better) >= before / SLACK


@given(planning_cases())
def test_the_time_of_the_mean_length_promises_no_less_where_times_are_convex(case: PlanningCase) -> None:
    convex = PolynomialProfile((1.0, 0.3, 0.01), 1024)
    case = replace(
        case,
        kv_bytes=PolynomialProfile((1.0, 2.0)),
        prfaas=replace(case.prfaas, prefill_s=convex),
        pd=replace(case.pd, prefill_s=ScaledProfile(convex, 2.0)),
    )
    sustained = best_rate(replace(case, averaging=Averaging.MEAN_TIME))
    printed = best_rate(replace(case, averaging=Averaging.TIME_OF_MEAN))
    assert printed >= sustained / SLACK


@given(planning_cases(), st.integers(2, 5))
def test_a_system_of_twice_everything_serves_at_least_twice_as_much(case: PlanningCase, times: int) -> None:
    larger = replace(
        case,
        prfaas=replace(case.prfaas, instances=tuple(times * number for number in case.prfaas.instances)),
        pd=replace(case.pd, instances=times * case.pd.instances),
        link=replace(case.link, capacity_gbit_s=times * case.link.capacity_gbit_s),
    )
    assert best_rate(larger) >= times * best_rate(case) / SLACK


SMOOTH = TruncatedLogNormal(5.5, 0.8, 100, 1000)


def test_7_at_the_optimum_neither_prefill_stage_waits_for_the_other() -> None:
    case = by_hand(lengths=SMOOTH, output_tokens=0.1)
    plan = plan_of(case, rate_surface(case, threshold_grid(SMOOTH, 0.25)).best())
    assert plan.prfaas_per_s is not None
    assert plan.pd_prefill_per_s is not None
    at_home_bound = plan.pd_prefill_per_s / (1 - plan.long_share)
    assert plan.prfaas_per_s / plan.long_share == pytest.approx(at_home_bound, rel=2e-3)


def test_8_with_many_instances_prefill_feeds_decode_exactly() -> None:
    case = by_hand(
        lengths=SMOOTH,
        output_tokens=40.0,
        pd=replace(by_hand().pd, instances=400),
        prfaas=PrfaasCluster(PolynomialProfile((0.0, 0.0, 1.0), 100), (50,)),
        link=WideLink(1000.0),
    )
    plan = plan_of(case, rate_surface(case, threshold_grid(SMOOTH, 1)).best())
    assert plan.prefill_to_decode == pytest.approx(1, rel=0.01)


def test_prfaas_instances_that_add_nothing_are_not_used() -> None:
    case = by_hand(prfaas=PrfaasCluster(PolynomialProfile((1e-6,)), (7, 5, 6)), link=WideLink(1e-6))
    assert rate_surface(case, threshold_grid(case.lengths, 50)).best().prfaas_instances == 5


def test_where_decode_binds_the_link_is_left_alone() -> None:
    """Three of four instances must decode; one prefills any share of the requests in time."""
    second = PolynomialProfile((1.0,))
    case = by_hand(
        prfaas=PrfaasCluster(ScaledProfile(second, 1.1), (1,)),
        pd=replace(by_hand().pd, prefill_s=second),
        output_tokens=12.0,
    )
    surface = rate_surface(case, threshold_grid(case.lengths, 100))
    assert surface.requests_per_s[0, 1] == pytest.approx([1 / 1.1, 1, 1, 1, 1, 1, 1])
    assert surface.best() == Division(600.0, 1, 1, 3)


def test_without_prfaas_instances_nothing_is_offloaded() -> None:
    case = by_hand(prfaas=PrfaasCluster(PolynomialProfile((1.0,)), (0,)))
    plan = plan_of(case, rate_surface(case, threshold_grid(case.lengths, 100)).best())
    assert plan.threshold_tokens is None
    assert plan.requests_per_s > 0


def test_one_instance_can_decode_while_everything_is_offloaded() -> None:
    case = by_hand(pd=replace(by_hand().pd, instances=1))
    division = rate_surface(case, threshold_grid(case.lengths, 100)).best()
    assert (division.threshold_tokens, division.prefill_instances, division.decode_instances) == (0.0, 0, 1)
