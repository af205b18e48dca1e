"""Thresholds that nobody has set: from which length on routing sends prompts away."""

from collections.abc import Callable
from dataclasses import replace

from services.gateway.cluster.registry import RegistryView
from services.gateway.control.believed import probes, shown_after, thresholds_of
from services.gateway.control.settled import Settled
from services.gateway.routing.plan import Plan, RequestFacts
from services.gateway.routing.policies.cost import ByCost
from services.gateway.routing.policies.threshold import Threshold
from services.gateway.routing.router import Router
from shared.errors import NoWorker
from shared.ids import Datacenter
from tests.support.control import EAST, GBIT, LAYOUT, WEST, cluster
from tests.support.members import member
from tests.support.plans import plan

LENGTHS = probes(64, 131_072)


def routed(limits: dict[Datacenter, range]) -> Callable[[RequestFacts, RegistryView], Plan]:
    """A routing that chooses a datacenter for the lengths of a range."""

    def make(request: RequestFacts, _view: RegistryView) -> Plan:
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
    policy = Router(WEST, LAYOUT, Threshold(10_000, 600), "raw")
    found = thresholds_of(policy.plan, cluster(), LENGTHS, 200)
    assert found[WEST] is not None
    assert found[EAST] is not None
    assert abs(found[WEST] - 601) <= 0.02 * 601
    assert abs(found[EAST] - 10_001) <= 0.02 * 10_001


def test_by_cost_the_threshold_rises_when_the_link_is_slower() -> None:
    policy, view = Router(WEST, LAYOUT, ByCost(), "raw"), cluster()
    fast = thresholds_of(policy.plan, view, LENGTHS, 200)[EAST]
    view.links.goodput_bytes_per_s[:] = 0.05 * GBIT
    slow = thresholds_of(policy.plan, view, LENGTHS, 200)[EAST]
    assert fast is not None
    assert slow is None or slow > fast


def test_a_datacenter_that_is_never_chosen_has_none() -> None:
    found = thresholds_of(routed({EAST: range(200_000)}), cluster(), LENGTHS, 0)
    assert found == {WEST: None, EAST: 65}


def test_a_range_of_lengths_counts_from_where_it_begins() -> None:
    found = thresholds_of(routed({WEST: range(3000, 20_000), EAST: range(20_000, 200_000)}), cluster(), LENGTHS, 0)
    assert found[WEST] is not None
    assert found[EAST] is not None
    assert 3000 <= found[WEST] <= 3060
    assert 20_000 <= found[EAST] <= 20_400


def test_where_nobody_can_decode_nothing_is_believed() -> None:
    def nobody(_request: RequestFacts, _view: RegistryView) -> Plan:
        raise NoWorker("nobody")

    assert thresholds_of(nobody, cluster(), LENGTHS, 0) == {}


def test_what_is_shown_changes_when_two_looks_in_a_row_see_another_threshold() -> None:
    shown = Settled({EAST: 1000})
    assert shown_after(shown, {EAST: 1150}) == shown
    once = shown_after(shown, {EAST: 1300})
    assert (once.value, once.num_against) == ({EAST: 1000}, 1)
    assert shown_after(once, {EAST: 1100}) == shown
    assert shown_after(once, {EAST: 1400}) == Settled({EAST: 1400})
    assert shown_after(shown_after(shown, {EAST: None}), {EAST: None}).value == {EAST: None}


def test_another_datacenter_is_shown_at_once() -> None:
    assert shown_after(Settled({EAST: 1000}), {EAST: 1000, WEST: 10}) == Settled({EAST: 1000, WEST: 10})
