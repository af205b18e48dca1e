"""Which link models need of which only the KV throughput is known."""

import json

import pytest

from services.gateway.routing.planning.case import WideLink
from services.gateway.routing.planning.egress import egress_demand
from services.gateway.routing.planning.profiles import PolynomialProfile, TabulatedProfile

MODEL = TabulatedProfile((1000.0, 2000.0), (4.0, 8.0))


def test_needs_and_instances_by_length() -> None:
    demand = egress_demand("m", MODEL, [1000, 1500, 2000], 3, WideLink(25.0, usable_share=0.8))
    assert demand.instance_gbit_s.tolist() == [4, 6, 8]
    assert demand.cluster_gbit_s.tolist() == [12, 18, 24]
    assert demand.carried_instances.tolist() == [5, 3, 2]
    assert not demand.is_carried


def test_a_link_that_fits_exactly_carries() -> None:
    demand = egress_demand("m", MODEL, [2000], 3, WideLink(24.0))
    assert demand.is_carried
    assert demand.carried_instances.tolist() == [3]


def test_it_is_plain_json() -> None:
    demand = egress_demand("m", MODEL, [1000], 3, WideLink(24.0))
    assert json.loads(json.dumps(demand.to_json())) == {
        "model": "m",
        "tokens": [1000],
        "instance_gbit_s": [4],
        "cluster_gbit_s": [12],
        "carried_instances": [6],
        "is_carried": True,
    }


def test_a_profile_that_falls_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at 2,000 tokens"):
        egress_demand("m", PolynomialProfile((2.0, -1.0), 1000), [1000, 2000], 1, WideLink(1.0))
