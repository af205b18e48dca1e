"""What the live part of the benchmark makes of what processes publish; `tests/wan` has the suite itself."""

import math

import pytest

from benchmarks.simulator.live.asking import Answered
from benchmarks.simulator.live.case import LENGTHS, LiveCase, calls_of, poisson, sustained_per_s
from benchmarks.simulator.live.comparing import LiveFinding, facts
from benchmarks.simulator.live.published import Published, PublishedNews
from benchmarks.simulator.live.session import LivePlan, LiveRun, LiveShare, warm_up
from benchmarks.simulator.live.sites import BLOCK_TOKENS, OFFLOAD_TOKENS, environ, layout
from benchmarks.wan.suite import EAST, WEST
from shared.bus.events import LinkLoad, LoadEvent, MembershipEvent, Role
from shared.ids import Datacenter, Epoch, WorkerId
from shared.kv.layout import KvLayout, LayerSpec
from shared.step_profile import StepProfile
from simulator.scenario import CallTiming
from tests.support.events import idle

LAYOUT = KvLayout((LayerSpec(None, 3, 64),) * 4, "bfloat16", BLOCK_TOKENS)
PREFILL, DECODE = StepProfile(0.03, 0.01), StepProfile(0.02, 0.005, 0.0, 0.02)
GOODPUT, ROUND_TRIP_S = 12e6, 0.03


def member(role: Role, dc: str) -> MembershipEvent:
    return MembershipEvent(
        worker=WorkerId(f"{role}-{dc}"),
        role=role,
        dc=Datacenter(dc),
        address="a:1",
        layout_hash=LAYOUT.hash,
        epoch=Epoch(1),
        capacity=1 << 30 if role == "cachepool" else 40_000,
    )


def load(role: Role, dc: str, profile: StepProfile | None = None, goodput: float = 0.0) -> LoadEvent:
    links = (LinkLoad(Datacenter(EAST), goodput, 0, 10, ROUND_TRIP_S),) if goodput else ()
    hand_over = 1e8 if profile else 0.0
    return idle(f"{role}-{dc}", step_profile=profile, step_tokens=512, hand_over_bytes_per_s=hand_over, links=links)


def news() -> PublishedNews:
    told = PublishedNews()
    roles: list[tuple[Role, str]] = [("prefill", EAST), ("prefill", WEST), ("decode", WEST)]
    for role, dc in [*roles, ("cachepool", EAST), ("cachepool", WEST)]:
        told.take(member(role, dc))
    for role, dc in roles:
        told.take(load(role, dc, DECODE if role == "decode" else PREFILL))
    told.take(load("cachepool", WEST, goodput=GOODPUT))
    return told


@pytest.fixture
def published() -> Published:
    return news().mean()


def test_the_means_are_of_what_was_said_since_the_beginning() -> None:
    told = news()
    told.take(load("prefill", EAST, StepProfile(0.05, 0.02)))
    told.begin()
    told.take(load("prefill", EAST, StepProfile(0.07, 0.04)))
    told.take(load("cachepool", WEST, goodput=2 * GOODPUT))
    told.take(load("cachepool", WEST))  # nothing is known for a moment
    found = told.mean()
    assert found.engine("prefill", EAST).profile == pytest.approx(StepProfile(0.06, 0.03))
    assert found.engine("prefill", WEST).profile == PREFILL
    (link,) = found.pools[f"cachepool-{WEST}"].links
    assert link.goodput_bytes_per_s == pytest.approx(1.5 * GOODPUT)
    assert not found.pools[f"cachepool-{EAST}"].links


def test_an_engine_without_a_profile_is_not_known() -> None:
    told = PublishedNews()
    told.take(member("decode", WEST))
    with pytest.raises(LookupError, match="has not told its profile"):
        told.mean()
    with pytest.raises(LookupError, match="no prefill worker"):
        Published({}, {}).engine("prefill", EAST)


def test_a_scenario_is_what_was_published(published: Published) -> None:
    asked = poisson(1.0, 5, "seed")
    found = LiveCase(published, LAYOUT, CallTiming(0.1)).scenario("threshold", asked)
    assert {(dc.name, dc.gateways) for dc in found.datacenters} == {(EAST, 0), (WEST, 1)}
    assert [(group.role, group.dc, group.cost) for group in found.engines] == [
        ("prefill", EAST, PREFILL),
        ("prefill", WEST, PREFILL),
        ("decode", WEST, DECODE),
    ]
    assert {(link.from_dc, link.to_dc, link.bytes_per_s, link.round_trip_s) for link in found.links} == {
        (EAST, WEST, GOODPUT, ROUND_TRIP_S),
        (WEST, EAST, GOODPUT, ROUND_TRIP_S),
    }
    assert found.kv.layout.entry_bytes(0) == LAYOUT.entry_bytes(0)
    assert found.kv.layout.num_layers == LAYOUT.num_layers
    assert found.calls.plan_s == 0.1
    arrivals = list(found.requests.requests(0, BLOCK_TOKENS))
    assert [(one.at_s, one.prompt.num_tokens) for one in arrivals] == asked
    keys = [key for one in arrivals for key in one.prompt.keys]
    assert len(set(keys)) == len(keys), "nobody has seen a prompt before"


def test_the_rate_that_is_sustained_keeps_one_engine_busy(published: Published) -> None:
    rate = sustained_per_s(published, BLOCK_TOKENS)
    asked = poisson(rate, 4000, "seed")
    busy_s = {WEST: 0.0, EAST: 0.0}
    for one in asked:
        ready = (one.num_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        busy_s[WEST if one.num_tokens <= OFFLOAD_TOKENS else EAST] += PREFILL.prompt_s(0, ready, 512)
    assert max(busy_s.values()) / asked[-1].at_s == pytest.approx(1.0, abs=0.1)
    assert {one.num_tokens for one in poisson(9.0, 20, "seed")} == {one.num_tokens for one in poisson(1.0, 20, "seed")}
    assert all(LENGTHS.least <= one.num_tokens <= LENGTHS.most for one in asked)


def answered(case: LiveCase, lengths: list[int], late_s: float = 0.0, plan_s: float = 0.0) -> list[Answered]:
    """Return what a suite would have answered that is `late_s` slower than the simulator."""
    sent = [Answered(10.0 * number, length, 0.0, plan_s, "", 0.0, False) for number, length in enumerate(lengths)]
    outcome = case.simulate("threshold", sent)
    return [
        one._replace(ttft_s=float(ttft_s) + late_s, kind=kind)
        for one, ttft_s, kind in zip(sent, outcome.ttft_s, outcome.kind, strict=True)
    ]


def test_calls_take_what_an_idle_suite_takes_longer(published: Published) -> None:
    case = LiveCase(published, LAYOUT)
    late = answered(case, [8, 8, 70, 90, 110, 200], late_s=0.08, plan_s=0.005)
    calls = calls_of(case, late)
    assert (calls.plan_s, calls.call_s, calls.hand_over_s) == pytest.approx((0.005, 0.075, 0.0), abs=1e-9)
    slow = [one._replace(ttft_s=one.ttft_s + 0.02 * (one.kind != "none")) for one in late]
    assert calls_of(case, slow).hand_over_s == pytest.approx(0.02)
    assert calls_of(case, answered(case, [8, 80], late_s=-0.1)) == CallTiming(), "no call takes less than nothing"


def test_findings_compare_quantiles(published: Published) -> None:
    case = LiveCase(published, LAYOUT)
    idle = answered(case, [70, 90, 200])
    load = LiveShare(0.5, 1.0, [one._replace(ttft_s=1.25 * one.ttft_s) for one in idle], published)
    finding = LiveFinding("threshold", load, case.simulate("threshold", load.answers))
    assert [(row["way"], row["quantile"], row["error_%"]) for row in finding.rows] == [
        (way, quantile, -20.0) for way in ("all", "local", "remote") for quantile in ("p50", "p90")
    ]
    assert [check.met for check in finding.checks(20.1)] == [True, True]
    assert [check.met for check in finding.checks(19.9)] == [False, False]
    run = LiveRun("threshold", published, LAYOUT, 1.0, idle, [load])
    assert math.isclose(run.case.calls.hand_over_s, 0.0, abs_tol=1e-9)
    assert {next(iter(row)) for row in facts(run)} == {"load", "idle"}
    assert [row["load"] for row in facts(run) if "link" in row] == ["idle", "0.5"]


def test_every_process_has_its_share() -> None:
    processes = layout()
    assert set(processes.shares) == set(processes.names)
    assert environ("cost")["PRFAAS_ROUTING_POLICY"] == "cost"
    assert [len(burst) for burst in warm_up(LivePlan())] == [1, 2, 3] * 3
