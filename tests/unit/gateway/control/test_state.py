"""One look after the other, as the controller takes them."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.cluster.view import RegistryView
from services.gateway.control.answer import answer_of
from services.gateway.control.believed import probes
from services.gateway.control.evaluation import Evaluation
from services.gateway.control.gauges import PlanCollector
from services.gateway.control.observed import Observed
from services.gateway.control.replicas import divided, replicas_of
from services.gateway.control.settled import Settled
from services.gateway.control.sizing import Replicas
from services.gateway.control.state import PLAN_EVERY_S, ControlState, Looking, Snapshot, looked
from services.gateway.routing.policies.cost import ByCost
from services.gateway.routing.router import Router
from tests.support.control import DCS, EAST, LAYOUT, NORTH, TERMS, WEST, cluster, requests
from tests.support.members import member, workers

LOOKING = Looking(Router(WEST, LAYOUT, ByCost(), "raw").plan, probes(64, 131_072), TERMS)


def look(
    at: float,
    state: ControlState | None = None,
    view: RegistryView | None = None,
    observed: Observed | None = None,
) -> ControlState:
    return looked(state, Snapshot.of(at, view or cluster(), observed or requests(200)), LOOKING)


def test_plans_are_made_at_the_first_look_and_twice_a_minute() -> None:
    state = look(0)
    assert state.evaluated_at == 0
    later = look(PLAN_EVERY_S - 1, state)
    assert later.evaluation is state.evaluation
    assert later.snapshot.at == PLAN_EVERY_S - 1
    again = look(PLAN_EVERY_S, later)
    assert again.evaluated_at == PLAN_EVERY_S


def test_until_there_is_a_plan_each_look_tries() -> None:
    state = look(0, observed=requests(0))
    assert state.evaluation.current is None
    assert look(5, state).evaluation.current is not None


def test_a_snapshot_does_not_change_with_the_registry() -> None:
    view = cluster()
    snapshot = Snapshot.of(0, view, requests(10))
    view.decode.rows["busy"] = 0.5
    assert snapshot.view.decode.rows["busy"].max() == 0


def test_the_mode_is_scarce_after_two_looks_at_a_backlog_and_abundant_after_two_without() -> None:
    full = cluster()
    full.links.backlog_bytes[:] = 1e12
    state = look(0, view=full)
    assert not state.is_scarce
    state = look(5, state, view=full)
    assert state.is_scarce
    state = look(10, state)
    assert state.is_scarce
    assert not look(15, state).is_scarce


def test_an_answer_has_what_is_believed_beside_what_is_measured() -> None:
    answer = answer_of(look(7), TERMS, 9.5)
    json.dumps(answer, allow_nan=False)
    assert (answer["object"], answer["home"], answer["age_s"]) == ("plan", "west", 2.5)
    assert answer["observed"]["num_requests"] == 200
    assert answer["observed"]["output_tokens"]["mean"] == 1024
    groups = {(one["role"], one["dc"]): one["num_workers"] for one in answer["measured"]["workers"]}
    assert groups == {("decode", WEST): 5, ("prefill", EAST): 4, ("prefill", WEST): 3}
    assert answer["measured"]["links"][0]["kv_bytes_per_s"] == pytest.approx(12.5e9)
    assert answer["believed"]["mode"] == "bandwidth_abundant"
    assert answer["believed"]["offload_threshold_tokens"].keys() == {EAST, WEST}
    assert answer["believed"]["bound_by"] == answer["current"]["bound_by"]
    assert answer["best"]["requests_per_s"] >= answer["current"]["requests_per_s"]
    assert [(one["role"], one["dc"], one["present"]) for one in answer["desired"]] == [
        ("decode", WEST, 5),
        ("prefill", WEST, 3),
        ("prefill", EAST, 4),
    ]


def test_gauges_are_what_the_answer_says() -> None:
    state = look(0)
    families = {family.name: family for family in PlanCollector(lambda: state, WEST).collect()}
    desired = {(s.labels["role"], s.labels["dc"]): s.value for s in families["prfaas:desired_replicas"].samples}
    assert desired == {(one.role, one.dc): one.replicas for one in replicas_of(state.evaluation, cluster(), WEST)}
    assert {s.labels["stage"] for s in families["prfaas:stage_utilisation"].samples} == {
        "prfaas",
        "link",
        "pd_prefill",
        "pd_decode",
    }
    assert families["prfaas:link_scarce"].samples[0].value == 0
    assert all(s.value >= 64 for s in families["prfaas:offload_threshold_tokens"].samples)


def test_before_the_first_look_gauges_have_no_samples() -> None:
    assert [len(family.samples) for family in PlanCollector(lambda: None, WEST).collect()] == [0, 0, 0, 0]


def test_workers_elsewhere_are_wanted_where_they_are() -> None:
    makers = [member(f"maker-{n}", dc) for n, dc in enumerate((EAST, EAST, EAST, NORTH, WEST))]
    view = replace(cluster(), prefill=workers(DCS, makers))
    wanted = replicas_of(Evaluation(1.0, Replicas(4, 1, 5), wanted=Settled(Replicas(8, 0, 2))), view, WEST)
    assert {(one.role, one.dc): one.replicas for one in wanted} == {
        ("decode", WEST): 2,
        ("prefill", WEST): 0,
        ("prefill", EAST): 6,
        ("prefill", NORTH): 2,
    }


@given(st.integers(0, 100), st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_a_division_adds_up_and_is_never_a_whole_one_off(total: int, weights: list[int]) -> None:
    counts = divided(total, weights)
    assert sum(counts) == total
    assert all(abs(count - total * weight / sum(weights)) < 1 for count, weight in zip(counts, weights, strict=True))


NAMES = ("base_s", "token_s", "row_s", "context_s", "queued_s", "arrivals_per_s", "profile_steps")
figures = st.floats(0, 10, allow_subnormal=False)


@given(
    num_east=st.integers(0, 3),
    num_prefill=st.integers(0, 3),
    num_decode=st.integers(0, 3),
    num_requests=st.sampled_from([0, 1, 60]),
    per_s=figures,
    columns=st.fixed_dictionaries(
        dict.fromkeys(NAMES, figures)
        | {"kv_usage": st.floats(0, 1), "free_tokens": st.sampled_from([-10.0, 0.0, 1e5, np.inf])}
    ),
    goodput=st.sampled_from([0.0, 1.0, 1e9]),
)
@settings(max_examples=40)
def test_no_state_of_a_cluster_breaks_a_look(
    num_east: int, num_prefill: int, num_decode: int, num_requests: int, per_s: float, columns: Any, goodput: float
) -> None:
    view = cluster(num_east, num_prefill, num_decode, **columns)
    view.links.goodput_bytes_per_s[:] = goodput
    observed = requests(num_requests, per_s=per_s)
    state = None
    for at in (0, 31, 62):
        state = look(at, state, view=view, observed=observed)
        json.dumps(answer_of(state, TERMS, at), allow_nan=False)


def test_an_empty_cluster_is_looked_at_too() -> None:
    state = looked(None, Snapshot.of(0, RegistryView(), Observed()), LOOKING)
    answer = answer_of(state, TERMS, 0)
    assert answer["current"] is None
    assert answer["reasons"] == ["no decode worker is known in west", "no request has been answered yet"]
