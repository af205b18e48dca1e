"""Thresholds that nobody has set: from which length on routing sends prompts away."""

from dataclasses import replace

import pytest

from services.gateway.cluster.view import RegistryView
from services.gateway.control.believed import MakeAnyPlan, Thresholds, probes, shown_after, thresholds_of
from services.gateway.control.settled import Settled
from services.gateway.routing.plan import Plan, RequestFacts
from services.gateway.routing.policies import POLICIES, policy_of
from services.gateway.routing.policies.cost import ByCost
from services.gateway.routing.policies.threshold import Threshold
from services.gateway.routing.policy import RoutingPolicy
from services.gateway.routing.router import Router
from services.gateway.settings import GatewaySettings
from shared.errors import NoWorker
from shared.ids import Datacenter
from tests.support.control import EAST, GBIT, LAYOUT, WEST, cluster
from tests.support.members import member
from tests.support.plans import plan

LENGTHS = probes(64, 131_072)


def by(policy: RoutingPolicy, view: RegistryView) -> MakeAnyPlan:
    router = Router(WEST, LAYOUT, policy, "raw")
    return lambda request: router.plan(request, view)


def routed(limits: dict[Datacenter, range]) -> MakeAnyPlan:
    """A routing that chooses a datacenter for the lengths of a range."""

    def make(request: RequestFacts) -> Plan:
        for dc, lengths in limits.items():
            if request.num_tokens in lengths:
                return replace(plan(), prefill=member("maker", dc))
        return plan(0)

    return make


def test_probes_begin_with_the_first_block_to_hand_over_and_end_with_the_longest_context() -> None:
    assert LENGTHS[0] == 65
    assert LENGTHS[-1] == 131_072
    assert probes(64, 10) == [65]


def test_a_static_threshold_is_found_to_a_fiftieth() -> None:
    view = cluster()
    found = thresholds_of(by(Threshold(10_000, 600), view), view, LENGTHS, 200)
    assert found == {WEST: pytest.approx(601, rel=0.02), EAST: pytest.approx(10_001, rel=0.02)}


def test_by_cost_the_threshold_rises_when_the_link_is_slower() -> None:
    view = cluster()
    fast = thresholds_of(by(ByCost(), view), view, LENGTHS, 200)[EAST]
    view.links.goodput_bytes_per_s[:] = 0.05 * GBIT
    slow = thresholds_of(by(ByCost(), view), view, LENGTHS, 200)[EAST]
    assert fast is not None
    assert slow is None or slow > fast


def test_a_datacenter_that_is_never_chosen_has_none() -> None:
    found = thresholds_of(routed({EAST: range(200_000)}), cluster(), LENGTHS, 0)
    assert found == {WEST: None, EAST: 65}


def test_a_range_of_lengths_counts_from_where_it_begins() -> None:
    found = thresholds_of(routed({WEST: range(3000, 20_000), EAST: range(20_000, 200_000)}), cluster(), LENGTHS, 0)
    assert found == {WEST: pytest.approx(3000, rel=0.02), EAST: pytest.approx(20_000, rel=0.02)}


def test_where_nobody_can_decode_nothing_is_believed() -> None:
    def nobody(_request: RequestFacts) -> Plan:
        raise NoWorker("nobody")

    assert thresholds_of(nobody, cluster(), LENGTHS, 0) == {}


def test_what_is_shown_changes_when_two_looks_in_a_row_see_another_threshold() -> None:
    shown: Settled[Thresholds] = Settled({EAST: 1000})
    assert shown_after(shown, {EAST: 1150}) == shown
    once = shown_after(shown, {EAST: 1300})
    assert (once.value, once.num_against) == ({EAST: 1000}, 1)
    assert shown_after(once, {EAST: 1100}) == shown
    assert shown_after(once, {EAST: 1400}) == Settled({EAST: 1400})
    assert shown_after(shown_after(shown, {EAST: None}), {EAST: None}).value == {EAST: None}


def test_another_datacenter_is_shown_at_once() -> None:
    shown: Settled[Thresholds] = Settled({EAST: 1000})
    assert shown_after(shown, {EAST: 1000, WEST: 10}) == Settled({EAST: 1000, WEST: 10})


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_can_be_asked(name: str) -> None:
    policy = policy_of(GatewaySettings(routing_policy=name))
    for view in (cluster(), cluster(num_east=0), cluster(num_prefill=0), cluster(0, 0, 1)):
        found = thresholds_of(by(policy, view), view, LENGTHS, 200)
        assert found.keys() == {view.dcs[dc] for dc in view.prefill.rows["dc"]}
