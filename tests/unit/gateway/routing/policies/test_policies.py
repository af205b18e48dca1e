"""Which workers each policy takes, from the same facts, and how a setting names one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from services.gateway.cluster.links import Links
from services.gateway.cluster.workers import Member, Workers
from services.gateway.routing.datacenters import Credit
from services.gateway.routing.facts import Facts
from services.gateway.routing.plan import RequestFacts
from services.gateway.routing.policies import POLICIES, policy_of
from services.gateway.routing.policies.cost import ByCost
from services.gateway.routing.policies.least_load import LeastLoad
from services.gateway.routing.policies.mooncake import MooncakeTtft
from services.gateway.routing.policies.stay_home import StayHome
from services.gateway.routing.policies.threshold import Threshold
from services.gateway.routing.policy import RoutingPolicy
from services.gateway.settings import GatewaySettings
from shared.config import load
from shared.errors import SettingsError
from shared.ids import Datacenter
from shared.kv.layout import KvLayout, LayerSpec
from tests.support.members import member, workers

EAST, WEST = Datacenter("east"), Datacenter("west")
LAYOUT = KvLayout((LayerSpec(None, 1, 2),), "float32", 4)


HOME, HOME_BUSY, AWAY, AWAY_BUSY = (
    member("home", WEST),
    member("home-busy", WEST),
    member("away", EAST),
    member("away-busy", EAST),
)
LOADS = {HOME: 1.0, HOME_BUSY: 5.0, AWAY: 2.0, AWAY_BUSY: 9.0}
DCS = (WEST, EAST)


def prefill(*members: Member, **loads: float) -> Workers:
    return workers(DCS, members, requests=[loads.get(one.worker, LOADS[one]) for one in members])


def facts(num_tokens: int, longest: dict[Datacenter, int] | None = None, **more: Any) -> Facts:
    """A request that decode in the west serves; `longest`: leading blocks that a datacenter holds."""
    credits = {
        dc: Credit(np.array([1] * blocks + [0] * (800 - blocks), np.uint8), blocks)
        for dc, blocks in (longest or {}).items()
    }
    return Facts(
        request=RequestFacts(num_tokens, (), promised=more.pop("promised", {})),
        layout=LAYOUT,
        home=WEST,
        dcs=DCS,
        decode=workers(DCS, (member("decode-busy", WEST), member("decode", WEST)), requests=[7, 3]),
        prefill=prefill(AWAY_BUSY, HOME_BUSY, AWAY, HOME),
        links=Links.unknown(2),
        suspects=frozenset(),
        credits=credits,
        num_usable=max((longest or {}).values(), default=0),
        num_enough=num_tokens // 4,
    )


def ranked(policy: RoutingPolicy, given: Facts) -> list[str]:
    return [str(given.prefill[row].worker) for row in policy.decide(given).prefill]


def test_threshold_sends_long_prompts_away_and_keeps_short_ones() -> None:
    assert ranked(Threshold(16), facts(17)) == ["away", "away-busy", "home", "home-busy"]
    assert ranked(Threshold(16), facts(16)) == ["home", "home-busy", "away", "away-busy"]
    # What a cache has does not count.
    assert ranked(Threshold(16), facts(24, {EAST: 2}))[0] == "home"


def test_with_scarce_bandwidth_the_threshold_counts_with_each_sides_own_cache() -> None:
    scarce = Threshold(16, bandwidth="scarce")
    given = facts(28, {EAST: 6})
    assert ranked(Threshold(16), given)[0] == "home", "abundant: the prefix is moved"
    assert ranked(scarce, given)[0] == "away", "scarce: home would compute all of it"
    assert ranked(scarce, facts(28, {WEST: 3, EAST: 6}))[0] == "home"
    assert scarce.decide(facts(28, {WEST: 3, EAST: 6})).pull_from == frozenset({WEST})
    assert scarce.decide(given).pull_from == frozenset({EAST, WEST})
    assert Threshold(16).decide(given).pull_from is None


def test_what_is_computed_sooner_than_handed_over_is_left_to_decode() -> None:
    assert ranked(Threshold(16, 12), facts(12)) == []
    assert ranked(Threshold(16, 12), facts(13))[0] == "home"
    assert ranked(Threshold(16, 12), facts(24, {EAST: 3})) == []  # what a cache has does not count
    following = facts(12, promised={AWAY.worker: 2})
    assert ranked(Threshold(16, 12), following)[0] == "away", "whose prefix is being computed is waited for"


def test_stay_home_goes_away_only_when_nobody_is_at_home() -> None:
    assert ranked(StayHome(), facts(1000)) == ["home", "home-busy", "away", "away-busy"]
    assert ranked(StayHome(), replace(facts(1000), prefill=prefill(AWAY_BUSY, AWAY))) == ["away", "away-busy"]


def test_least_load_knows_no_datacenters() -> None:
    assert ranked(LeastLoad(), facts(1000)) == ["home", "away", "home-busy", "away-busy"]
    equal = replace(facts(1000, {EAST: 3}), prefill=prefill(HOME, AWAY, home=2))
    assert ranked(LeastLoad(), equal) == ["away", "home"]


@pytest.mark.parametrize("policy", [Threshold(16), LeastLoad()])
def test_a_prompt_follows_who_computes_its_prefix(policy: RoutingPolicy) -> None:
    given = facts(1000, {WEST: 3}, promised={HOME_BUSY.worker: 4})
    assert ranked(policy, given)[0] == "home-busy"
    # Not for what caches have already.
    assert ranked(policy, facts(1000, {WEST: 4}, promised={HOME_BUSY.worker: 4}))[0] != "home-busy"


def test_stay_home_follows_at_home_only() -> None:
    assert ranked(StayHome(), facts(1000, promised={AWAY.worker: 9}))[0] == "home"
    assert ranked(StayHome(), facts(1000, promised={HOME_BUSY.worker: 9}))[0] == "home-busy"


@pytest.mark.parametrize("policy", [Threshold(16), LeastLoad(), StayHome()])
def test_decode_is_the_least_loaded(policy: RoutingPolicy) -> None:
    given = facts(10)
    assert given.decode[policy.decide(given).decode].worker == "decode"


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_can_be_named_and_decides(name: str) -> None:
    policy = policy_of(load(GatewaySettings, {"PRFAAS_ROUTING_POLICY": name}))
    given = facts(3000)
    decision = policy.decide(given)
    assert decision.decode in (0, 1)
    assert len(set(decision.prefill)) == len(decision.prefill)
    assert set(decision.prefill) <= set(range(len(given.prefill)))
    assert policy.decide(given) == decision, "pure"


def test_the_default_is_cost_and_the_threshold_has_settings() -> None:
    assert policy_of(load(GatewaySettings, {})) == ByCost()
    environ = {
        "PRFAAS_ROUTING_POLICY": "threshold",
        "PRFAAS_OFFLOAD_THRESHOLD_TOKENS": "77",
        "PRFAAS_DECODE_THRESHOLD_TOKENS": "7",
    }
    settings = load(GatewaySettings, environ)
    assert policy_of(settings) == Threshold(77, 7)


def test_the_options_of_a_policy_are_its_fields() -> None:
    environ = {
        "PRFAAS_ROUTING_POLICY": "threshold",
        "PRFAAS_POLICY_OPTIONS": "bandwidth=scarce, decode_threshold_tokens=3",
    }
    assert policy_of(load(GatewaySettings, environ)) == Threshold(512, 3, "scarce")
    environ = {"PRFAAS_ROUTING_POLICY": "mooncake", "PRFAAS_POLICY_OPTIONS": "kvcache_balancing_threshold=4"}
    assert policy_of(load(GatewaySettings, environ)) == MooncakeTtft(4.0)


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("threshold", "bandwidth=none", "bandwidth: must be one of abundant, scarce"),
        ("mooncake", "kvcache_balancing_threshold=much", "kvcache_balancing_threshold: not a number"),
        ("gorgo", "speed=1", "speed: not an option of this policy .it has running_weight, network_weight"),
        ("stay_home", "speed=1", "speed: not an option of this policy .it has none"),
        ("gorgo", "1", "must be name=value,name=value"),
    ],
)
def test_a_wrong_option_is_named(name: str, options: str, problem: str) -> None:
    environ = {"PRFAAS_ROUTING_POLICY": name, "PRFAAS_POLICY_OPTIONS": options}
    with pytest.raises(SettingsError, match=rf"PRFAAS_POLICY_OPTIONS: {problem}"):
        policy_of(load(GatewaySettings, environ))


def test_an_unknown_policy_is_named_with_those_there_are() -> None:
    settings = load(GatewaySettings, {"PRFAAS_ROUTING_POLICY": "psychic"})
    with pytest.raises(SettingsError, match=r"PRFAAS_ROUTING_POLICY: must be one of cost, .* \(got 'psychic'\)"):
        policy_of(settings)
