"""The baselines: a PD cluster alone, and everything offloaded."""

from services.gateway.routing.planning.case import PrfaasCluster, threshold_grid
from services.gateway.routing.planning.deployments import compare_deployments, homogeneous, naive
from services.gateway.routing.planning.profiles import PolynomialProfile
from services.gateway.routing.planning.search import rate_surface
from tests.support.planning import by_hand


def test_a_homogeneous_cluster_finds_its_own_split() -> None:
    plan = homogeneous(by_hand(output_tokens=100.0), 13)
    # 37.5 s of prefill and 100 * 0.5 / 2 = 25 s of decode for each request.
    assert (plan.prefill_instances, plan.decode_instances) == (8, 5)
    assert plan.requests_per_s == min(8 / 37.5, 5 / 25)
    assert plan.prfaas_instances == 0
    assert plan.long_share == 0


def test_the_naive_deployment_offloads_everything() -> None:
    plan = naive(by_hand())
    assert (plan.long_share, plan.prefill_instances, plan.decode_instances) == (1.0, 0, 4)


def test_the_homogeneous_cluster_is_as_large_as_both_unless_it_is_told_otherwise() -> None:
    case = by_hand(prfaas=PrfaasCluster(PolynomialProfile((1.0,)), (2,)))
    surface = rate_surface(case, threshold_grid(case.lengths, 100))
    alone = compare_deployments(case, surface).homogeneous_pd
    assert alone.prefill_instances + alone.decode_instances == 6
    told = compare_deployments(case, surface, homogeneous_instances=3).homogeneous_pd
    assert told.prefill_instances + told.decode_instances == 3


def test_selective_offload_is_at_least_as_good_as_naive() -> None:
    case = by_hand()
    both = compare_deployments(case, rate_surface(case, threshold_grid(case.lengths, 100)))
    assert both.prfaas_pd.requests_per_s >= both.naive_heterogeneous.requests_per_s
