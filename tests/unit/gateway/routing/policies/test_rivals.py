"""What each rival's policy prefers. Blocks of 64 tokens; home is west, and decode and two prefill workers are there."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from services.gateway.cluster.links import Links
from services.gateway.cluster.workers import Workers
from services.gateway.routing.datacenters import Credit
from services.gateway.routing.facts import Facts
from services.gateway.routing.plan import RequestFacts, Slo
from services.gateway.routing.policies.by_chance import ByChance
from services.gateway.routing.policies.deflection import Deflection
from services.gateway.routing.policies.dynamo import DynamoCost
from services.gateway.routing.policies.gorgo import Gorgo
from services.gateway.routing.policies.llm_d import WeightedScores
from services.gateway.routing.policies.lmetric import Lmetric
from services.gateway.routing.policies.mooncake import MooncakeTtft
from services.gateway.routing.policies.round_robin import RoundRobin
from services.gateway.routing.policies.two_choices import TwoChoices
from services.gateway.routing.policy import RoutingPolicy
from shared.ids import Datacenter
from shared.kv.layout import KvLayout, LayerSpec
from tests.support.members import member, workers

WEST, EAST = DCS = (Datacenter("west"), Datacenter("east"))
LAYOUT = KvLayout((LayerSpec(None, 4, 64),), "float16", 64)  # 64 KiB a block
PREFILL = {"a": WEST, "b": WEST, "c": EAST}


def table(names: dict[str, Datacenter], columns: dict[str, Any]) -> Workers:
    speed = {"base_s": 0.005, "token_s": 1e-4, "pair_s": 0.0, "row_s": 1e-4, "context_s": 0.0, "step_tokens": 2048}
    figures = {**speed, "hand_over_bytes_per_s": 1e12, **columns}
    spread = {name: np.broadcast_to(value, len(names)).tolist() for name, value in figures.items()}
    return workers(DCS, [member(name, dc) for name, dc in names.items()], **spread)


def credit(num_blocks: int, of: int, is_on_tier: bool = False) -> Credit:
    groups = np.array([1] * num_blocks + [0] * (of - num_blocks), np.uint8)
    return Credit(groups, num_blocks, groups if is_on_tier else None)


def facts(
    num_tokens: int = 6400,
    held: dict[Datacenter, Credit] | None = None,
    decode: dict[str, Any] | None = None,
    request: dict[str, Any] | None = None,
    **prefill: Any,
) -> Facts:
    """Columns of the prefill workers by name; those of the two decode workers in `decode`."""
    held = held or {}
    links = Links.unknown(2)
    links.goodput_bytes_per_s[:], links.round_trip_s[:] = 1e9, 0.04
    return Facts(
        request=RequestFacts(num_tokens, (b"",) * (num_tokens // 64), **(request or {})),  # type: ignore[arg-type]
        layout=LAYOUT,
        home=WEST,
        dcs=DCS,
        decode=table({"d": WEST, "e": WEST}, decode or {}),
        prefill=table(PREFILL, prefill),
        links=links,
        suspects=frozenset(),
        credits=held,
        num_usable=max((one.longest for one in held.values()), default=0),
        num_enough=(num_tokens - 1) // 64,
        codec="raw",
    )


def chosen(policy: RoutingPolicy, given: Facts) -> str:
    """Return the name of the prefill worker; empty when decode stays alone."""
    decision = policy.decide(given)
    return str(given.prefill[decision.prefill[0]].worker) if decision.prefill else ""


def drawn(policy: RoutingPolicy, given: Facts, num: int = 60) -> dict[str, int]:
    """Return how often each prefill worker is chosen over evenly spaced draws."""
    names = [chosen(policy, replace(given, request=replace(given.request, draw=(at + 0.5) / num))) for at in range(num)]
    return {name: names.count(name) for name in names}


@pytest.mark.parametrize("policy", [DynamoCost(), Lmetric(), WeightedScores(), MooncakeTtft()])
def test_of_equal_workers_chance_takes_one(policy: RoutingPolicy) -> None:
    assert set(drawn(policy, facts())) == set(PREFILL)


def test_dynamo_counts_prompts_in_blocks_and_cached_ones_by_where_they_lie() -> None:
    # 100 blocks cached in the east are worth 75 in memory and 25 on a disk.
    held = {EAST: credit(100, 100)}
    assert chosen(DynamoCost(), facts(held=held, queued_tokens=[0, 6400, 74 * 64])) == "c"
    assert chosen(DynamoCost(), facts(held=held, queued_tokens=[0, 6400, 76 * 64])) == "a"
    on_disk = {EAST: credit(100, 100, is_on_tier=True)}
    assert chosen(DynamoCost(), facts(held=on_disk, queued_tokens=[0, 6400, 24 * 64])) == "c"
    assert chosen(DynamoCost(), facts(held=on_disk, queued_tokens=[0, 6400, 26 * 64])) == "a"
    following = facts(queued_tokens=[0, 0, 99 * 64], request={"promised": {"c": 100}})
    assert chosen(DynamoCost(), following) == "c", "blocks under way are the device's"


def test_dynamo_adds_running_blocks_and_lmetric_multiplies_with_requests() -> None:
    given = facts(queued_tokens=[0, 640, 640], context_tokens=[1280, 0, 320])
    assert chosen(DynamoCost(), given) == "b"
    assert chosen(DynamoCost(prefill_load_scale=4), given) == "a", "the scale weighs prompts"
    given = facts(queued_tokens=[0, 6400, 6400], requests=[2, 0, 1])
    assert chosen(Lmetric(), given) == "b"
    assert chosen(Lmetric(), facts(queued_tokens=[0, 6400, 6400], requests=[0, 0, 1])) == "a"


@pytest.mark.parametrize("policy", [DynamoCost(), Lmetric()])
def test_isl_bounding_leaves_what_is_short_and_mostly_cached_to_decode(policy: RoutingPolicy) -> None:
    assert chosen(policy, facts(1920)), "nothing of it is cached"
    assert not chosen(policy, facts(1920, {WEST: credit(10, 30)}))
    assert chosen(policy, facts(1920, {EAST: credit(10, 30)})), "cached where decode is not"
    assert chosen(policy, facts(6400, {WEST: credit(60, 100)})), "too long"


def test_dynamo_decodes_where_the_fewest_blocks_are() -> None:
    given = facts(decode={"context_tokens": [900, 800], "requests": [1, 9]})
    assert DynamoCost().decide(given).decode == 1


def test_llm_d_weighs_prefix_queue_and_memory() -> None:
    held = {WEST: credit(100, 101)}
    assert chosen(WeightedScores(), facts(6464, held, requests=[3, 4, 0])) == "a", "the prefix has twice the weight"
    assert chosen(WeightedScores(prefix_weight=0.5), facts(6464, held, requests=[3, 4, 0])) == "c"
    assert chosen(WeightedScores(), facts(kv_usage=[0.5, 0.2, 0.9])) == "b"
    assert chosen(WeightedScores(), facts(requests=[9, 3, 6], running=[9, 2, 5])) == "a", "those that wait count"


def test_llm_d_disaggregates_from_so_many_uncached_tokens_on() -> None:
    held = {WEST: credit(90, 100)}
    assert chosen(WeightedScores(non_cached_tokens=640), facts(held=held))
    assert not chosen(WeightedScores(non_cached_tokens=641), facts(held=held))


def test_mooncake_moves_a_prefix_only_when_it_is_much_longer() -> None:
    # The worker in the east has 90 of 100 blocks; those at home have 50.
    held = {WEST: credit(50, 100), EAST: credit(90, 100)}
    busy = facts(held=held, queued_s=[0.0, 1.0, 1.0])
    moved = MooncakeTtft(1.5).decide(busy)
    assert busy.prefill[moved.prefill[0]].worker == "a"
    assert moved.pull_from is None
    kept = MooncakeTtft(2.0).decide(busy)
    assert kept.pull_from == frozenset({WEST})
    idle = facts(held=held)
    assert chosen(MooncakeTtft(2.0), idle) == "c", "where the prefix is, nothing waits"


def test_mooncake_weighs_a_slow_link_against_computing() -> None:
    held = {EAST: credit(90, 100)}
    given = facts(held=held, queued_s=[0.0, 1.0, 0.2])
    assert chosen(MooncakeTtft(), given) == "a"
    given.links.goodput_bytes_per_s[:] = 5e6
    assert chosen(MooncakeTtft(), replace(given)) == "c"


def test_gorgo_adds_queue_prompt_and_round_trip() -> None:
    assert chosen(Gorgo(), facts(queued_tokens=[500, 900, 0])) == "c", "50 ms of queue against 40 ms of network"
    assert chosen(Gorgo(), facts(queued_tokens=[300, 900, 0])) == "a"
    assert chosen(Gorgo(), facts(queued_tokens=[300, 0, 0], held={EAST: credit(50, 100)})) == "c"
    assert chosen(Gorgo(), facts(context_tokens=[2000, 1000, 0], queued_tokens=[0, 0, 700])) == "b"
    assert chosen(Gorgo(network_weight=0), facts(queued_tokens=[300, 900, 0])) == "c"


def test_a_prompt_is_deflected_when_decode_is_sooner_within_its_tbt() -> None:
    assert chosen(Deflection(), facts(queued_s=0.0)), "idle prefill workers take it"
    queued = facts(queued_s=9.0)
    assert not chosen(Deflection(), queued)
    # Steps of 40 ms leave room for chunks of less than 100 tokens: as many steps as there are.
    assert chosen(Deflection(), facts(queued_s=2.0, decode={"running": 350}))
    assert not chosen(Deflection(), facts(queued_s=9.0, decode={"running": 350}))
    strict = replace(queued, request=replace(queued.request, slo=Slo(time_per_output_token_s=0.005)))
    assert chosen(Deflection(), strict), "no chunk keeps that"
    assert chosen(Deflection(margin=0.95), queued)


def test_round_robin_takes_turns_everywhere() -> None:
    given = facts()
    plans = [replace(given, request=replace(given.request, number=number)) for number in range(6)]
    assert [chosen(RoundRobin(), plan) for plan in plans] == ["a", "b", "c", "a", "b", "c"]
    assert [RoundRobin().decide(plan).decode for plan in plans] == [0, 1, 0, 1, 0, 1]
    assert list(RoundRobin().decide(plans[1]).prefill) == [1, 2, 0]


def test_chance_draws_evenly() -> None:
    assert drawn(ByChance(), facts()) == {"a": 20, "b": 20, "c": 20}


def test_of_two_choices_the_less_loaded_is_taken() -> None:
    counts = drawn(TwoChoices(), facts(requests=[5, 1, 3]), 600)
    assert "a" not in counts
    assert counts["b"] / counts["c"] == pytest.approx(2, rel=0.1)
    assert (
        len({TwoChoices().decide(replace(facts(), request=RequestFacts(64, (), draw=d))).decode for d in (0, 0.9)}) == 2
    )


@pytest.mark.parametrize(
    "policy",
    [
        ByChance(),
        Deflection(),
        DynamoCost(),
        Gorgo(),
        Lmetric(),
        MooncakeTtft(),
        RoundRobin(),
        TwoChoices(),
        WeightedScores(),
    ],
)
def test_without_prefill_workers_decode_is_left_alone(policy: RoutingPolicy) -> None:
    given = facts()
    nobody = replace(given, prefill=given.prefill.where(np.zeros(3, bool)))
    assert list(policy.decide(nobody).prefill) == []
