"""One division's plan, worked out by hand; what binds; what leaves as JSON."""

import json
import math
from dataclasses import fields

import pytest

from services.gateway.routing.planning.capacity import CapacityPlan, Stage, plan_of
from services.gateway.routing.planning.case import Averaging, DecodePoint, Division, PdCluster, PrfaasCluster, WideLink
from services.gateway.routing.planning.profiles import PolynomialProfile
from tests.support.planning import by_hand

HALF = Division(threshold_tokens=200, prfaas_instances=9, prefill_instances=3, decode_instances=1)


def test_every_number_of_a_plan() -> None:
    plan = plan_of(by_hand(), HALF)
    assert plan.averaging is Averaging.MEAN_TIME
    assert (plan.threshold_tokens, plan.prfaas_instances, plan.prefill_instances, plan.decode_instances) == (
        200,
        9,
        3,
        1,
    )
    assert plan.long_share == 0.5
    assert (plan.long_tokens, plan.short_tokens) == pytest.approx((450, 150))
    assert plan.prfaas_compute_per_s == pytest.approx(9 / 22.5)
    assert plan.link_per_s == pytest.approx(1e9 / 450e6)
    assert plan.prfaas_per_s == plan.prfaas_compute_per_s
    assert plan.pd_prefill_per_s == pytest.approx(3 / 7.5)
    assert plan.pd_decode_per_s == pytest.approx(1 * 2 / (0.5 * 10))
    assert plan.requests_per_s == pytest.approx(0.4)
    assert plan.bound_by is Stage.PD_DECODE
    assert plan.egress_needed_gbit_s == pytest.approx(9 * 450e6 / 22.5 * 8 / 1e9)
    assert plan.egress_gbit_s == pytest.approx(0.4 * 0.5 * 450e6 * 8 / 1e9)
    assert plan.link_share == pytest.approx(plan.egress_gbit_s / 8)
    assert plan.prefill_to_decode == pytest.approx((0.4 + 0.4) / 0.4)


@pytest.mark.parametrize(
    ("division", "link_gbit_s", "bound_by", "per_s"),
    [
        (Division(200, 1, 3, 9), 8.0, Stage.PRFAAS, 1 / 22.5 / 0.5),
        (Division(200, 9, 3, 9), 0.8, Stage.LINK, 1e8 / 450e6 / 0.5),
        (Division(200, 9, 1, 9), 8.0, Stage.PD_PREFILL, 1 / 7.5 / 0.5),
        (HALF, 8.0, Stage.PD_DECODE, 0.4),
    ],
)
def test_the_stage_that_binds(division: Division, link_gbit_s: float, bound_by: Stage, per_s: float) -> None:
    plan = plan_of(by_hand(link=WideLink(link_gbit_s)), division)
    assert plan.bound_by is bound_by
    assert plan.requests_per_s == pytest.approx(per_s)


def test_only_the_usable_share_of_a_link_counts() -> None:
    plan = plan_of(by_hand(link=WideLink(8.0, usable_share=0.25)), HALF)
    assert plan.link_per_s == pytest.approx(0.25e9 / 450e6)
    assert plan.link_share == pytest.approx(plan.egress_gbit_s / 8), "egress is told as a share of the whole capacity"


def test_a_plan_that_offloads_nothing_has_no_threshold_and_no_egress() -> None:
    plan = plan_of(by_hand(), Division(600, 9, 3, 1))
    absent = (plan.threshold_tokens, plan.long_tokens, plan.prfaas_per_s, plan.link_per_s, plan.egress_needed_gbit_s)
    assert absent == (None,) * 5
    assert (plan.long_share, plan.egress_gbit_s) == (0.0, 0.0)
    assert plan.requests_per_s == pytest.approx(3 / (3 * (1 + 4 + 9 + 36) / 4))


def test_a_plan_that_offloads_everything_needs_no_prefill_at_home() -> None:
    plan = plan_of(by_hand(), Division(0, 9, 0, 4))
    assert (plan.threshold_tokens, plan.long_share, plan.short_tokens, plan.pd_prefill_per_s) == (0, 1.0, None, None)
    assert plan.requests_per_s == pytest.approx(9 / 12.5)


def test_without_decode_instances_nothing_is_served() -> None:
    plan = plan_of(by_hand(), Division(200, 9, 4, 0))
    assert (plan.requests_per_s, plan.bound_by, plan.prefill_to_decode) == (0.0, Stage.PD_DECODE, math.inf)


def test_a_plan_is_flat_json() -> None:
    plan = plan_of(by_hand(), HALF)
    copied = json.loads(json.dumps(plan.to_json(), allow_nan=False))
    assert list(copied) == [field.name for field in fields(CapacityPlan)]
    assert (copied["averaging"], copied["bound_by"]) == ("E[T(L)]", "pd_decode")
    assert CapacityPlan(**copied) == plan


def test_a_case_is_built_from_measurements_as_well_as_from_files() -> None:
    measured = PolynomialProfile.fit((100, 200, 300, 600), (1.0, 4.0, 9.0, 36.0), degree=2)
    case = by_hand(
        prfaas=PrfaasCluster(measured, (9,)),
        pd=PdCluster(PolynomialProfile((0, 0, 3), 100), DecodePoint(2, 0.5), 4),
    )
    assert plan_of(case, HALF).prfaas_per_s == pytest.approx(9 / 22.5)
