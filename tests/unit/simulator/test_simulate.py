from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, permutations

import numpy as np
import pytest

from services.gateway.routing.policies.cost import ByCost
from services.gateway.routing.policies.stay_home import StayHome
from services.gateway.routing.policies.threshold import Threshold
from services.gateway.routing.policy import RoutingPolicy
from shared.step_profile import StepProfile
from simulator.kv import KvSize
from simulator.network.capacity import ScheduledCapacity
from simulator.network.links import LinkSpec
from simulator.scenario import CallTiming, DatacenterSpec, EngineGroup, Scenario, WorkerChange
from simulator.simulate import Simulation, simulate
from simulator.workload.arrivals import GivenArrivals, PoissonArrivals
from simulator.workload.prompts import (
    Conversations,
    ExponentialTokens,
    FixedTokens,
    LogNormalTokens,
    PromptSource,
    SinglePrompts,
)
from simulator.workload.workload import DrawnRequests

FAST, SLOW = StepProfile(0.01, 5e-5, 1e-9), StepProfile(0.015, 1e-4, 2e-9, 1e-4, 1e-8)
BYTES_PER_TOKEN, BLOCK = 65_536, 512
LINK_BYTES_PER_S = 1.25e9


def always_away() -> RoutingPolicy:
    return Threshold(0, 0)


def scenario(policy: Callable[[], RoutingPolicy] = ByCost, *, per_s: float = 2.0, num: int = 300) -> Scenario:
    prompts: PromptSource = Conversations(
        BLOCK, LogNormalTokens(8.5, 1.0, 64, 60_000), LogNormalTokens(6.0, 1.0), ExponentialTokens(100.0), num_open=30
    )
    return Scenario(
        datacenters=(DatacenterSpec("home", 2, 20_000), DatacenterSpec("away", 0, 20_000)),
        engines=(
            EngineGroup("prefill", "away", 2, FAST, 4096),
            EngineGroup("prefill", "home", 2, SLOW, 2048),
            EngineGroup("decode", "home", 3, SLOW, 2048),
        ),
        links=tuple(LinkSpec(*ends, LINK_BYTES_PER_S, 0.02) for ends in (("away", "home"), ("home", "away"))),
        requests=DrawnRequests(PoissonArrivals(per_s), prompts, {"home": 1.0}, num),
        kv=KvSize(BYTES_PER_TOKEN, BLOCK),
        policy=policy,
    )


def single(case: Scenario, num_tokens: int, output: int = 10) -> Scenario:
    """Return the case with one request, which comes when everybody is known."""
    prompts = SinglePrompts(FixedTokens(num_tokens), FixedTokens(output))
    return replace(case, requests=DrawnRequests(GivenArrivals([1.0]), prompts, {"home": 1.0}, 1))


def test_a_scenario_has_one_outcome() -> None:
    first, again = simulate(scenario()), simulate(scenario())
    assert np.array_equal(first.ttft_s, again.ttft_s)
    assert first.num_events == again.num_events
    other = simulate(replace(scenario(), seed=1))
    assert not np.array_equal(first.ttft_s, other.ttft_s)


def test_all_requests_finish_and_arrays_agree() -> None:
    outcome = simulate(scenario())
    assert outcome.num_requests == 300
    assert np.isfinite(outcome.finished_s).all()
    assert (outcome.ttft_s > 0).all()
    assert (outcome.finished_s >= outcome.arrival_s + outcome.ttft_s).all()
    assert not outcome.rejected.any()
    assert 0 < outcome.uncached_tokens.sum() < outcome.prompt_tokens.sum()  # conversations hit
    assert outcome.good.any()
    assert set(outcome.kind) <= {"none", "local", "remote", "decode_only"}


def wandering() -> Scenario:
    """Return conversations whose turns come to any of three datacenters, small pools, and losses of all kinds."""
    names = ("a", "b", "c")
    case = scenario(per_s=4.0, num=400)
    assert isinstance(case.requests, DrawnRequests)
    return replace(
        case,
        datacenters=tuple(DatacenterSpec(name, 2, 800) for name in names),
        engines=tuple(
            group
            for name in names
            for group in (EngineGroup("prefill", name, 1, FAST, 4096), EngineGroup("decode", name, 2, SLOW))
        ),
        links=tuple(
            LinkSpec(*ends, LINK_BYTES_PER_S, 0.02, loss=1e-6, connections=4) for ends in permutations(names, 2)
        ),
        requests=replace(case.requests, dcs=dict.fromkeys(names, 1.0)),
        changes=(
            WorkerChange.lost(20.0, "a-prefill-0"),
            WorkerChange.lost(25.0, "b-decode-0"),
            WorkerChange.lost(40.0, "c-prefill-0"),
            WorkerChange.lost(45.0, "b-prefill-0"),
            WorkerChange.joins(50.0, "a-prefill-0"),
            WorkerChange.joins(60.0, "b-decode-0"),
        ),
    )


def test_prefixes_are_pulled_from_other_datacenters_and_every_answer_ends() -> None:
    outcome = simulate(wandering())
    assert np.isfinite(outcome.finished_s).all()
    assert outcome.attempts.max() == 2
    assert {"a", "b", "c"} <= set(outcome.prefill_dc)
    assert sum(num_bytes > 0 for num_bytes in outcome.crossed_bytes.values()) == 6
    assert outcome.uncached_tokens.sum() < 0.7 * outcome.prompt_tokens.sum()


def test_nothing_is_held_when_idle() -> None:
    simulation = Simulation(wandering())
    outcome = simulation.run()
    assert all(use.backlog_bytes[-1] >= 0 for use in outcome.links.values())
    for seat in simulation.places.engines.seats.values():
        assert seat.engine.num_running == seat.engine.num_waiting == 0
        assert not seat.on_lost
    for pool in simulation.places.pools.values():
        stats = pool.store.stats
        assert stats.num_leases == stats.num_readers == stats.num_writers == 0
        assert stats.used_bytes <= pool.store.budget_bytes


def test_the_time_to_the_first_token_of_a_prompt_alone() -> None:
    outcome = simulate(single(scenario(StayHome), 2000))
    blocks = 2000 // BLOCK * BLOCK
    left = (2000 - blocks) // 8  # decode has computed the other layers of the tail while they landed
    expected = SLOW.prompt_s(0, blocks, 2048) + SLOW.prompt_s(2000 - left, 2000, 2048)
    assert outcome.kind == ("local",)
    assert outcome.ttft_s[0] == pytest.approx(expected)


def test_a_tail_that_takes_longer_than_its_prompt_is_not_computed_before_it_can_be() -> None:
    slow_decode = SLOW._replace(token_s=1e-2)
    case = scenario(StayHome)
    engines = tuple(replace(group, cost=slow_decode) if group.role == "decode" else group for group in case.engines)
    outcome = simulate(single(replace(case, engines=engines), 2000))
    blocks = 2000 // BLOCK * BLOCK
    prefill_s, tail_s = SLOW.prompt_s(0, blocks, 2048), slow_decode.prompt_s(blocks, 2000, 2048)
    expected = max(prefill_s, prefill_s / 8 + tail_s) + slow_decode.base_s
    assert outcome.ttft_s[0] == pytest.approx(expected, rel=0.01)


def test_calls_take_their_time() -> None:
    case = single(scenario(StayHome), 2000)
    calm = simulate(case).ttft_s[0]
    calls = CallTiming(plan_s=0.1, call_s=0.02, hand_over_s=0.003)
    assert simulate(replace(case, calls=calls)).ttft_s[0] == pytest.approx(calm + 0.123, abs=1e-3)
    alone = replace(case, policy=lambda: Threshold(0, 10_000))
    assert simulate(replace(alone, calls=calls)).ttft_s[0] == pytest.approx(simulate(alone).ttft_s[0] + 0.12)


def test_the_forecast_is_what_happens_to_a_prompt_alone() -> None:
    for policy in (StayHome, always_away):
        outcome = simulate(single(scenario(policy), 8000))
        assert outcome.ttft_forecast_s[0] == pytest.approx(outcome.ttft_s[0], rel=0.25)


def test_kv_crosses_while_it_is_computed() -> None:
    tokens, case = 20_000, scenario(always_away)
    streamed = simulate(single(case, tokens))
    stored = simulate(single(replace(case, streamed=False), tokens))
    blocks = tokens // BLOCK * BLOCK
    compute_s, cross_s = FAST.prompt_s(0, blocks, 4096), blocks * BYTES_PER_TOKEN / LINK_BYTES_PER_S
    tail_s = SLOW.prompt_s(blocks, tokens, 2048)
    assert streamed.kind == stored.kind == ("remote",)
    assert stored.ttft_s[0] == pytest.approx(compute_s + cross_s + 0.01 + tail_s, rel=0.01)
    assert max(compute_s, cross_s) < streamed.ttft_s[0] < 0.75 * stored.ttft_s[0] + 0.25 * max(compute_s, cross_s)
    assert streamed.crossed_bytes["away", "home"] == pytest.approx(blocks * BYTES_PER_TOKEN)


def test_a_prompt_that_was_seen_is_not_computed_again() -> None:
    case = scenario(StayHome)
    prompts = Conversations(4096, FixedTokens(64), FixedTokens(64), FixedTokens(5), num_open=1, mean_turns=100.0)
    outcome = simulate(replace(case, requests=DrawnRequests(PoissonArrivals(0.2), prompts, {"home": 1.0}, 5)))
    assert outcome.uncached_tokens[0] >= 4096
    assert (outcome.uncached_tokens[1:] < 2 * BLOCK).all()


def test_a_lost_prefill_worker_costs_time_and_no_answer() -> None:
    case = single(scenario(always_away), 50_000)
    calm = simulate(case)
    lost = tuple(WorkerChange.lost(1.5, f"away-prefill-{number}") for number in range(2))
    one, both = (simulate(replace(case, changes=lost[:num])) for num in (1, 2))
    assert np.isfinite([one.finished_s[0], both.finished_s[0]]).all()
    assert max(one.ttft_s[0], both.ttft_s[0]) > calm.ttft_s[0]
    assert both.attempts[0] == 1


def test_a_lost_decode_worker_is_followed_by_another() -> None:
    case = single(scenario(StayHome), 2000, output=500)
    calm = simulate(case)
    lost = tuple(WorkerChange.lost(3.0, f"home-decode-{number}") for number in range(2))
    outcome = simulate(replace(case, changes=lost))
    assert np.isfinite(outcome.finished_s[0])
    assert outcome.ttft_s[0] == calm.ttft_s[0]
    assert 1 <= outcome.attempts[0] <= 3
    nobody = simulate(
        replace(case, changes=tuple(WorkerChange.lost(3.0, f"home-decode-{number}") for number in range(3)))
    )
    assert np.isnan(nobody.finished_s[0])


def test_a_worker_that_joins_gets_work() -> None:
    case = scenario(StayHome, per_s=4.0)
    absent = frozenset({"home-decode-1", "home-decode-2"})
    joins = tuple(WorkerChange.joins(20.0, name) for name in absent)
    simulation = Simulation(replace(case, absent=absent, changes=joins))
    simulation.run()
    assert all(simulation.places.seat(name).decode.num_steps > 0 for name in absent)


def test_a_slower_worker_is_avoided_by_cost() -> None:
    case = scenario(ByCost, per_s=3.0, num=600)
    simulation = Simulation(replace(case, changes=(WorkerChange.joins(0.0, "home-prefill-0", slowdown=5.0),)))
    simulation.run()
    slow, usual = (simulation.places.seat(f"home-prefill-{number}").prefill for number in range(2))
    assert slow.meter.total_busy_s / 5 < usual.meter.total_busy_s


def test_who_waits_for_a_link_that_is_cut_off_computes_at_home() -> None:
    cut = tuple(
        LinkSpec(*ends, LINK_BYTES_PER_S, 0.02, capacity=ScheduledCapacity.dip(30.0, 90.0, 0.0))
        for ends in (("away", "home"), ("home", "away"))
    )
    case = replace(scenario(always_away, per_s=1.0, num=150), links=cut, stall_s=2.0)
    outcome = simulate(case)
    assert np.isfinite(outcome.finished_s).all()
    during = outcome.within(45.0, 85.0)
    kinds = np.array(outcome.kind)[during]
    assert (kinds != "remote").mean() > 0.8  # the pool suspects the other, so that plans stay at home
    assert np.nanmax(outcome.ttft_s[during]) < 20.0
    back = np.array(outcome.kind)[outcome.within(105.0)]
    assert (back == "remote").any()


def test_links_are_sampled_and_never_above_their_capacity() -> None:
    outcome = simulate(scenario(always_away))
    use = outcome.links["away", "home"]
    assert len(use.bytes_per_s) == int(outcome.end_s / 0.5)
    assert use.bytes_per_s.max() <= LINK_BYTES_PER_S * (1 + 1e-9)
    assert use.bytes_per_s.sum() * 0.5 == pytest.approx(outcome.crossed_bytes["away", "home"], rel=0.05)


def test_a_run_may_end_early() -> None:
    outcome = simulate(replace(scenario(), until_s=20.0))
    assert outcome.end_s == 20.0
    assert np.isnan(outcome.finished_s).any()
    assert all(later >= sooner for sooner, later in pairwise(outcome.arrival_s))


def test_a_scenario_that_names_what_is_not_there() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        simulate(replace(scenario(), links=(LinkSpec("nowhere", "home", 1.0),)))
    with pytest.raises(ValueError, match="decode engine"):
        simulate(replace(scenario(), engines=scenario().engines[:2]))


def falling(share: float) -> Scenario:
    """Return a prompt that is computed away, and a link that falls a little after its first pieces have crossed."""
    case = single(scenario(always_away), 60_000)
    links = tuple(replace(link, capacity=ScheduledCapacity(((2.0, share),))) for link in case.links)
    return replace(case, links=links)


def test_decode_computes_what_a_link_that_fell_does_not_bring() -> None:
    calm, fallen = simulate(falling(1.0)), simulate(falling(0.01))
    assert not calm.rescued.any()
    assert fallen.rescued.all()
    alone_s = SLOW.prompt_s(0, 60_000, 2048)
    assert fallen.ttft_s[0] < 0.2 + 3 * alone_s
    assert fallen.ttft_s[0] < 0.5 * 60_000 * BYTES_PER_TOKEN / (0.01 * LINK_BYTES_PER_S)
    assert calm.uncached_tokens[0] < fallen.uncached_tokens[0]


def test_a_link_that_has_come_back_is_used_again() -> None:
    links = tuple(
        replace(link, capacity=ScheduledCapacity.dip(30.0, 60.0, 0.02)) for link in scenario(always_away).links
    )
    outcome = simulate(replace(scenario(per_s=2.0, num=250), links=links))
    remote = np.array(outcome.kind) == "remote"
    before, during, after = (
        remote[outcome.within(*span)].mean() for span in ((10.0, 30.0), (35.0, 60.0), (75.0, 120.0))
    )
    assert during < 0.3 * before
    assert after > 0.6 * before
