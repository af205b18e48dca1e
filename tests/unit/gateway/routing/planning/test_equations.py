"""Equations (1) to (6) at numbers worked out by hand, and at the paper's own."""

import numpy as np
import pytest

from services.gateway.routing.planning.equations import (
    decode_rate_per_s,
    egress_needed_bytes_per_s,
    instances_rate_per_s,
    kv_throughput_bytes_per_s,
    link_rate_per_s,
    rate_bound_per_s,
    request_rate_per_s,
)

MIB = 2**20


@pytest.mark.parametrize(
    ("kv_mib", "prefill_s", "gbit_s"),
    [(190.8, 0.44, 3.61), (308.9, 0.72, 3.59), (701.3, 1.84, 3.19), (2316.3, 7.40, 2.62)],
)
def test_1_kv_throughput_is_the_papers_column(kv_mib: float, prefill_s: float, gbit_s: float) -> None:
    assert kv_throughput_bytes_per_s(kv_mib * MIB, prefill_s) * 8 / 1e9 == pytest.approx(gbit_s, rel=0.01)


def test_2_a_busy_cluster_sends_as_many_times_the_mean_kv_as_it_has_instances() -> None:
    assert egress_needed_bytes_per_s(4, 600.0, 3.0) == 800.0


def test_3_and_4_instances_compute_one_request_after_another() -> None:
    assert instances_rate_per_s(4, 2.5) == 1.6


def test_3_the_link_carries_its_rate_over_the_kv_of_a_request() -> None:
    assert link_rate_per_s(1000.0, 250.0) == 4.0


@pytest.mark.parametrize(("instances", "per_s"), [(5, 3.91), (3, 2.34), (8, 6.25)])
def test_5_decode_is_the_papers(instances: int, per_s: float) -> None:
    assert decode_rate_per_s(instances, batch=20, step_s=0.025, output_tokens=1024) == pytest.approx(per_s, abs=5e-3)


def test_6_of_the_papers_throughputs_is_the_papers_lambda() -> None:
    p = np.array([0.496])
    found = request_rate_per_s(np.array([1.61]), np.array([1.64]), 3.91, p, 1 - p)
    assert found[0] == pytest.approx(3.24, rel=0.005)


def test_6_is_the_least_of_three_terms() -> None:
    p = np.array([0.25, 0.25, 0.25])
    prfaas, at_home = np.array([1.0, 9.0, 9.0]), np.array([9.0, 3.0, 9.0])
    assert request_rate_per_s(prfaas, at_home, 5.0, p, 1 - p).tolist() == [4.0, 4.0, 5.0]


def test_6_a_stage_that_serves_nobody_does_not_bind_even_if_its_rate_is_unknown() -> None:
    assert rate_bound_per_s(np.array([np.nan, 0.0, 0.0]), np.array([0.0, 0.0, 0.5])).tolist() == [np.inf, np.inf, 0.0]
    found = request_rate_per_s(
        np.array([np.nan, 2.0]), np.array([3.0, np.nan]), 9.0, np.array([0.0, 1.0]), np.array([1.0, 0.0])
    )
    assert found.tolist() == [3.0, 2.0]
