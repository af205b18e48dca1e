"""Plans of the cluster as it is observed; the paper's case is the measure."""

import json

import pytest

from services.gateway.cluster.view import RegistryView
from services.gateway.control.evaluation import Evaluation, evaluate, stage_utilisation
from services.gateway.control.observed import Observed
from services.gateway.control.settled import Settled
from services.gateway.control.sizing import Replicas
from services.gateway.control.ways import ways_home
from services.gateway.routing.planning.capacity import Stage
from tests.support.control import EAST, TERMS, WEST, cluster, requests


def look(
    view: RegistryView | None = None, observed: Observed | None = None, wanted: Settled[Replicas] | None = None
) -> Evaluation:
    view, observed = view or cluster(), observed or requests()
    return evaluate(view, observed, ways_home(view, WEST, TERMS.links, observed.crossing_bytes_per_s), TERMS, wanted)


def test_the_papers_cluster_is_divided_as_in_the_paper() -> None:
    seen = look(cluster(num_prefill=4, num_decode=4))
    assert seen.best is not None
    assert (seen.best.prfaas_instances, seen.best.prefill_instances, seen.best.decode_instances) == (4, 3, 5)
    assert seen.best.threshold_tokens == pytest.approx(18_400, rel=0.08)
    assert seen.best.requests_per_s == pytest.approx(3.24 / 1.05, rel=0.05)  # E[T(L)] promises some 5 % less
    assert seen.current is not None
    assert (seen.current.prefill_instances, seen.current.decode_instances) == (4, 4)
    assert seen.current.requests_per_s <= seen.best.requests_per_s
    assert seen.reasons == ()


def test_utilisation_is_one_where_the_rate_is_what_the_stage_sustains() -> None:
    seen = look()
    assert seen.current is not None
    shares = stage_utilisation(seen.current, seen.current.requests_per_s)
    assert max(shares, key=lambda stage: shares[stage]) == seen.current.bound_by
    assert shares[seen.current.bound_by] == pytest.approx(1.0)
    assert set(shares) == set(Stage)
    bound = seen.current.bound_by
    assert seen.utilisation[bound] == pytest.approx(2.0 / seen.current.requests_per_s)


def test_a_cluster_without_other_datacenters_is_planned_alone() -> None:
    seen = look(cluster(num_east=0))
    assert seen.best is not None
    assert (seen.best.prfaas_instances, seen.best.long_share) == (0, 0)
    assert seen.present == Replicas(0, 3, 5)
    assert Stage.LINK not in seen.utilisation


def test_without_prefill_at_home_decode_workers_stand_for_it_and_the_answer_says_so() -> None:
    seen = look(cluster(num_prefill=0))
    assert seen.current is not None
    assert seen.reasons == ("no prefill worker in west has measured its steps: decode workers stand for them",)


@pytest.mark.parametrize(
    ("view", "observed", "reason"),
    [
        (cluster(), requests(0), "no request has been answered yet"),
        (cluster(num_decode=0), requests(), "no decode worker is known in west"),
        (cluster(), requests(49), "49 of the 50 requests"),
        (cluster(profile_steps=0.5), requests(), "no decode worker in west has measured its steps"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_decided(view: RegistryView, observed: Observed, reason: str) -> None:
    seen = look(view, observed)
    assert any(reason in said for said in seen.reasons)
    assert seen.wanted is None
    assert seen.desired == seen.present


def test_what_was_decided_stands_while_too_little_is_known() -> None:
    decided = Settled(Replicas(2, 3, 4))
    assert look(observed=requests(10), wanted=decided).wanted == decided
    assert look(cluster(num_decode=0), wanted=decided).desired == decided.value


def test_a_link_that_nobody_has_measured_is_assumed_and_the_answer_says_so() -> None:
    view = cluster()
    view.links.goodput_bytes_per_s[:] = 0
    seen = look(view)
    assert seen.reasons == ("the link from east was not measured: 10 Gbit/s of KV are assumed",)
    assert seen.wanted is not None


def test_where_no_worker_has_measured_those_of_home_stand_for_them() -> None:
    view = cluster()
    view.prefill.rows["profile_steps"][view.prefill.rows["dc"] == view.dcs.index(EAST)] = 0
    view.prefill.rows["token_s"][view.prefill.rows["dc"] == view.dcs.index(EAST)] = 1e9
    seen = look(view)
    assert seen.reasons == ("no prefill worker in east has measured its steps: those of west stand for them",)
    assert seen.wanted is not None
    assert seen.current is not None
    assert seen.current.requests_per_s > 1


def test_prompts_that_decode_computes_alone_are_told() -> None:
    seen = look(observed=requests(kinds={"decode_only": 4000, "remote": 96}))
    assert "decode computed 4000 of 4096 prompts alone" in seen.reasons[0]


def test_the_rate_is_that_of_all_gateways_if_workers_report_more() -> None:
    assert look(cluster(arrivals_per_s=0.7)).requests_per_s == pytest.approx(3.5)
    assert look().requests_per_s == 2.0


def test_replicas_follow_the_rate_after_three_looks_and_not_before() -> None:
    few = look(observed=requests(per_s=0.2))
    assert few.wanted is not None
    assert (few.desired, few.wanted.num_against) == (few.present, 1)
    for _ in range(2):
        few = look(observed=requests(per_s=0.2), wanted=few.wanted)
    assert few.desired.total < few.present.total
    assert few.desired.decode >= 1
    again = look(observed=requests(per_s=0.2), wanted=few.wanted)
    assert again.wanted == Settled(few.desired)


def test_plans_are_numbers_that_json_has() -> None:
    for view in (cluster(), cluster(num_east=0), cluster(num_prefill=0), cluster(num_east=0, num_prefill=0)):
        seen = look(view)
        assert seen.current is not None
        assert seen.best is not None
        json.dumps([seen.current.to_json(), seen.best.to_json()], allow_nan=False)


def test_a_profile_that_is_no_profile_is_a_reason() -> None:
    seen = look(cluster(base_s=0.0, token_s=0.0, pair_s=0.0, row_s=1.0))
    assert seen.current is None
    assert "measurements make no plan: must be positive" in seen.reasons[0]
