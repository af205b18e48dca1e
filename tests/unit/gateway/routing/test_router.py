"""The routing rule, case by case. Blocks of 4 tokens, threshold of 8 tokens, home is west."""

import hashlib
import timeit
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from services.gateway.cluster.view import PoolMember, PoolMembers, RegistryView
from services.gateway.cluster.workers import Member
from services.gateway.placement.held import HeldPrefix
from services.gateway.routing.plan import Plan, RequestFacts, sources_text
from services.gateway.routing.policies import POLICIES, policy_of
from services.gateway.routing.policies.threshold import Threshold
from services.gateway.routing.policy import RoutingPolicy
from services.gateway.routing.router import Router
from services.gateway.settings import GatewaySettings
from shared.errors import NoWorker
from shared.ids import BlockKey, Datacenter, WorkerId
from shared.kv.codec import Codec
from shared.kv.entries import Source
from shared.kv.layout import KvLayout, LayerSpec
from shared.kv.rendezvous import owner
from tests.support.members import member, view, workers

EAST, WEST, NORTH = Datacenter("east"), Datacenter("west"), Datacenter("north")
DENSE = KvLayout((LayerSpec(None, 1, 2),), "float32", 4)
WINDOWED = KvLayout((LayerSpec(None, 1, 2), LayerSpec(5, 1, 2)), "float32", 4)  # window 5: one block back


def router(layout: KvLayout = DENSE, policy: RoutingPolicy | None = None) -> Router:
    return Router(WEST, layout, policy or Threshold(8), "lz4")


DECODE_WEST, DECODE_EAST = member("decode-west", WEST), member("decode-east", EAST)
PREFILL_WEST, PREFILL_EAST = member("prefill-west", WEST), member("prefill-east", EAST)
POOLS = {WorkerId(f"pool-{dc}"): PoolMember(dc, f"pool-{dc}:1") for dc in (EAST, WEST, NORTH)}
KEYS = [BlockKey(hashlib.sha256(b"%d" % block).digest()) for block in range(10)]
EVERYBODY = view((DECODE_WEST, DECODE_EAST), (PREFILL_EAST, PREFILL_WEST), POOLS)


def request(
    num_tokens: int, held: Mapping[str, int | list[int]] | None = None, layout: KvLayout = DENSE, **facts: Any
) -> RequestFacts:
    """`held` gives, for each DC's pool, leading blocks held wholly, or each block's layers."""
    num_blocks = num_tokens // 4
    by_pool = {}
    for dc, blocks in (held or {}).items():
        masks = [layout.all_layers] * blocks if isinstance(blocks, int) else blocks
        masks = masks + [0] * (num_blocks - len(masks))
        by_pool[WorkerId(f"pool-{dc}")] = held_by_one([layout.group_mask(mask) for mask in masks])
    return RequestFacts(num_tokens, KEYS[:num_blocks], by_pool, **facts)


def held_by_one(masks: list[int]) -> HeldPrefix:
    return HeldPrefix(np.array([masks, masks], np.uint8))


def seen(plan: Plan) -> tuple[str, str | None, int, list[str], list[str]]:
    prefill = plan.prefill.worker if plan.prefill else None
    decode_sources, prefill_sources = sources_text(plan.decode_sources), sources_text(plan.prefill_sources)
    return plan.kind, prefill, plan.num_blocks, decode_sources, prefill_sources


@pytest.mark.parametrize(
    ("num_tokens", "held", "expected"),
    [
        pytest.param(4, {}, ("none", None, 0, [], []), id="shorter than a block and a token"),
        pytest.param(8, {}, ("local", "prefill-west", 1, [], []), id="short: at home"),
        pytest.param(9, {}, ("remote", "prefill-east", 2, ["0-2@east"], []), id="long: remote"),
        pytest.param(21, {"west": 5}, ("none", None, 5, [], []), id="all cached at home"),
        pytest.param(20, {"west": 5}, ("none", None, 5, [], []), id="the last token's block too"),
        pytest.param(20, {"west": 4, "east": 5}, ("none", None, 5, ["4-5@east"], []), id="that one elsewhere"),
        pytest.param(20, {"west": 4}, ("none", None, 4, [], []), id="that one nowhere: decode computes it"),
        pytest.param(20, {"west": 3}, ("local", "prefill-west", 4, [], []), id="it is not computed ahead"),
        pytest.param(20, {"west": [1, 1, 1, 0, 1]}, ("local", "prefill-west", 4, [], []), id="no use behind a hole"),
        pytest.param(4, {"west": 1}, ("none", None, 1, [], []), id="a prompt of one block"),
        pytest.param(21, {"east": 5}, ("none", None, 5, ["0-5@east"], []), id="all cached remotely"),
        pytest.param(21, {"west": 2, "east": 5}, ("none", None, 5, ["2-5@east"], []), id="home has a part of it"),
        pytest.param(21, {"west": 3}, ("remote", "prefill-east", 5, ["3-5@east"], ["0-3@west"]), id="9 left"),
        pytest.param(21, {"west": 4}, ("local", "prefill-west", 5, [], []), id="5 left: at home"),
        pytest.param(
            21,
            {"east": 4},
            ("local", "prefill-west", 5, ["0-4@east"], ["0-4@east"]),
            id="the longer cache is elsewhere: transferred first",
        ),
        pytest.param(
            29,
            {"west": 1, "north": 3},
            ("remote", "prefill-east", 7, ["1-3@north", "3-7@east"], ["0-3@north"]),
            id="a third pool holds the longest prefix",
        ),
        pytest.param(
            29,
            {"east": 3, "north": 3},
            ("remote", "prefill-east", 7, ["0-7@east"], []),
            id="the prefill worker's pool is preferred",
        ),
        pytest.param(
            21,
            {"west": [1, 0, 1], "east": [0, 1]},
            (
                "remote",
                "prefill-east",
                5,
                ["1-2@east", "3-5@east"],
                ["0-1@west", "2-3@west"],
            ),
            id="a hole at home is filled from elsewhere",
        ),
    ],
)
def test_the_rule(num_tokens: int, held: dict[str, int | list[int]], expected: tuple[Any, ...]) -> None:
    plan = router().plan(request(num_tokens, held), EVERYBODY)
    assert seen(plan) == expected
    assert plan.decode == DECODE_WEST
    assert plan.home_dc == WEST
    assert plan.prefill_codec is plan.decode_codec is Codec.LZ4


def test_who_takes_over_when_the_prefill_worker_is_lost() -> None:
    """Only workers of its datacenter: decode's sources and the nodes that blocks are spread over stay as planned."""
    busy, idle = member("prefill-east-busy", EAST), member("prefill-east-idle", EAST)
    loads = {busy: 3, idle: 1}
    members = view((DECODE_WEST,), (busy, PREFILL_WEST, idle, PREFILL_EAST), POOLS, loads=loads)
    plan = router().plan(request(21), members)
    assert (plan.prefill, plan.prefill_spares) == (PREFILL_EAST, (idle, busy))
    assert router().plan(request(21, {"west": 5}), members).prefill_spares == ()


def test_placements_of_pools_that_nobody_announces_count_for_nothing() -> None:
    members = view((DECODE_WEST,), (PREFILL_EAST,), {})
    assert seen(router().plan(request(21, {"east": 5}), members))[:2] == ("remote", "prefill-east")


@pytest.mark.parametrize(
    ("prefill", "num_tokens", "expected"),
    [
        ((PREFILL_EAST,), 12, ("remote", "prefill-east")),
        ((PREFILL_WEST,), 21, ("local", "prefill-west")),
        ((), 21, ("decode_only", None)),
    ],
)
def test_the_other_side_serves_when_one_has_no_prefill_worker(
    prefill: tuple[Member, ...], num_tokens: int, expected: tuple[str, str | None]
) -> None:
    members = view((DECODE_WEST,), prefill, POOLS)
    plan = router().plan(request(num_tokens, {"west": 1}), members)
    assert seen(plan)[:2] == expected


def test_without_prefill_decode_counts_on_cached_blocks_alone() -> None:
    plan = router().plan(request(21, {"east": 3}), view((DECODE_WEST,), (), POOLS))
    assert seen(plan) == ("decode_only", None, 3, ["0-3@east"], [])


def test_decode_is_the_least_loaded_at_home_or_else_anywhere() -> None:
    busy, idle = member("decode-a", WEST), member("decode-b", WEST)
    loads = {busy: 2, idle: 1}
    assert router().plan(request(4), view((busy, idle, DECODE_EAST), loads=loads)).decode == idle
    assert router().plan(request(4), view((DECODE_EAST,))).decode == DECODE_EAST
    facts = request(4, excluded=frozenset({idle.worker}))
    assert router().plan(facts, view((busy, idle), loads=loads)).decode == busy


def test_home_moves_with_decode() -> None:
    members = view((DECODE_EAST,), (PREFILL_EAST, PREFILL_WEST), POOLS)
    plan = router().plan(request(21), members)
    assert (plan.home_dc, plan.kind, plan.prefill) == (EAST, "remote", PREFILL_WEST)


def test_nobody_can_decode() -> None:
    members = view((), (PREFILL_EAST,), POOLS, ("decode-west: has left",))
    with pytest.raises(NoWorker, match="decode-west: has left"):
        router().plan(request(4), members)
    facts = request(4, excluded=frozenset({DECODE_WEST.worker}))
    with pytest.raises(NoWorker):
        router().plan(facts, view((DECODE_WEST,)))


def test_remote_prefers_the_longest_prefix_then_the_least_load() -> None:
    north, east = member("prefill-north", NORTH), member("prefill-east", EAST)
    members = view((DECODE_WEST,), (east, north), POOLS, loads={north: 5})
    assert router().plan(request(41, {"north": 1}), members).prefill == north
    assert router().plan(request(41), members).prefill == east
    excluded = frozenset({east.worker})
    assert router().plan(request(41, excluded=excluded), members).prefill == north


def test_a_prompt_follows_who_computes_its_prefix_whatever_the_threshold() -> None:
    other = member("prefill-east-2", EAST)
    members = view((DECODE_WEST,), (other, PREFILL_EAST, PREFILL_WEST), POOLS)
    promised = {PREFILL_EAST.worker: 4}
    plan = router().plan(request(21, promised=promised), members)
    assert plan.prefill == PREFILL_EAST
    assert sources_text(plan.decode_sources) == ["0-5@east"]
    # Short as it is, it goes where its one block is being computed.
    assert router().plan(request(8, promised={PREFILL_EAST.worker: 1}), members).prefill == PREFILL_EAST
    # A wholly promised prompt still asks for prefill: should the first request be cancelled, the second goes on.
    assert router().plan(request(17, promised=promised), members).prefill == PREFILL_EAST
    # What is held already is not worth following.
    assert router().plan(request(21, {"west": 4}, promised=promised), members).prefill == PREFILL_WEST
    gone = frozenset({PREFILL_EAST.worker})
    assert router().plan(request(21, promised=promised, excluded=gone), members).prefill == other


def test_promised_blocks_need_no_source_for_prefill() -> None:
    facts = request(41, {"west": 3}, promised={PREFILL_EAST.worker: 5})
    plan = router().plan(facts, EVERYBODY)
    assert seen(plan) == ("remote", "prefill-east", 10, ["3-10@east"], [])


def test_window_layers_are_fetched_only_where_a_resume_needs_them() -> None:
    full, both = 0b01, 0b11
    # Home holds the full layers of all blocks, but the window layers of none: only the last block is fetched.
    held = {"west": [full] * 4, "east": [both] * 4}
    plan = router(WINDOWED).plan(request(17, held, WINDOWED), EVERYBODY)
    assert seen(plan) == ("none", None, 4, ["3-4@east"], [])
    # Without them nowhere, the prompt cannot be resumed at all: prefill pulls nothing, decode takes the new layers.
    plan = router(WINDOWED).plan(request(17, {"west": [full] * 4}, WINDOWED), EVERYBODY)
    assert seen(plan) == ("remote", "prefill-east", 4, ["3-4@east"], [])


def test_prefill_pulls_what_a_resume_at_the_usable_prefix_needs() -> None:
    # Usable are 2 blocks: their full layers and the window layers of block 1.
    held = {"west": [0b01, 0b11], "east": [0b01, 0b01]}
    plan = router(WINDOWED).plan(request(21, held, WINDOWED), EVERYBODY)
    assert plan.usable_blocks == 2
    assert seen(plan)[3:] == (["2-5@east"], ["1-2@west"])


def nodes_of(dc: Datacenter, *names: str) -> dict[WorkerId, PoolMember]:
    return {WorkerId(name): PoolMember(dc, f"{name}:1") for name in names}


def share(node: str, nodes: Sequence[str], num_blocks: int = 5) -> HeldPrefix:
    """All blocks that rendezvous hashing gives to one of the nodes."""
    addresses = [f"{name}:1" for name in nodes]
    masks = [int(owner(key, addresses) == f"{node}:1") for key in KEYS[:num_blocks]]
    return held_by_one(masks)


def test_a_block_counts_where_readers_will_look_for_it() -> None:
    two, three = ("e1", "e2"), ("e1", "e2", "e3")
    held = {WorkerId(name): share(name, two) for name in two}
    members = view((DECODE_WEST,), (PREFILL_EAST,), nodes_of(EAST, *two) | nodes_of(WEST, "w1"))
    plan = router().plan(RequestFacts(21, KEYS[:5], held), members)
    assert (plan.kind, plan.usable_blocks) == ("none", 5)
    assert plan.decode_sources == (Source(0, 5, EAST, ("e1:1", "e2:1")),)
    assert (plan.decode_nodes, plan.prefill_nodes) == (("w1:1",), ())

    # A third node has joined, empty: what is now its share counts no more, wherever it still lies.
    more = replace(members, pools=PoolMembers(nodes_of(EAST, *three) | nodes_of(WEST, "w1")))
    plan = router().plan(RequestFacts(21, KEYS[:5], held | {WorkerId("e3"): held_by_one([0] * 5)}), more)
    addresses = [f"{name}:1" for name in three]
    first_moved = next(block for block, key in enumerate(KEYS) if owner(key, addresses) == "e3:1")
    assert 0 < first_moved < 5
    assert plan.usable_blocks == first_moved
    assert plan.prefill_nodes == ("e1:1", "e2:1", "e3:1")
    assert plan.decode_sources == (Source(0, 5, EAST, ("e1:1", "e2:1", "e3:1")),)


def test_a_node_that_is_gone_takes_only_its_share_with_it() -> None:
    three = ("w1", "w2", "w3")
    held = {WorkerId(name): share(name, three) for name in three}
    members = view((DECODE_WEST,), (PREFILL_WEST,), nodes_of(WEST, *three))
    assert router().plan(RequestFacts(21, KEYS[:5], held), members).usable_blocks == 5
    gone = replace(members, pools=PoolMembers(nodes_of(WEST, "w1", "w2")))
    plan = router().plan(RequestFacts(21, KEYS[:5], held), gone)
    lost = [block for block, mask in enumerate(held[WorkerId("w3")].groups) if mask]
    assert plan.usable_blocks == lost[0]
    assert plan.prefill_nodes == plan.decode_nodes == ("w1:1", "w2:1")


def test_nodes_that_the_gateway_has_not_heard_of_are_the_workers_own() -> None:
    plan = router().plan(request(21), view((DECODE_WEST,), (PREFILL_EAST,), {}))
    assert plan.decode_nodes == plan.prefill_nodes == ()
    assert plan.decode_sources == (Source(0, 5, EAST, ("pool-east:1",)),)


def suspected(members: RegistryView, by: str, *addresses: str) -> RegistryView:
    worker = WorkerId(by)
    return replace(
        members, pools=PoolMembers(members.pools | {worker: replace(members.pools[worker], suspects=addresses)})
    )


def test_who_suspects_a_pool_does_not_pull_from_it() -> None:
    members = suspected(EVERYBODY, "pool-west", "pool-east:1")
    # What the suspect holds is had from elsewhere, or made; where it is made must be trusted too.
    assert seen(router().plan(request(21, {"east": 5, "north": 5}), members))[3] == ["0-5@north"]
    assert seen(router().plan(request(21, {"east": 5}), members)) == ("local", "prefill-west", 5, [], [])
    away = replace(members, prefill=workers(members.dcs, (PREFILL_EAST,)))
    assert seen(router().plan(request(21, {"west": 2}), away)) == ("decode_only", None, 2, [], [])


def test_a_suspect_of_one_datacenter_serves_its_own_and_third_ones() -> None:
    members = suspected(EVERYBODY, "pool-west", "pool-east:1")
    at_east = replace(members, decode=workers(members.dcs, (DECODE_EAST,)))
    assert seen(router().plan(request(21, {"east": 5}), at_east)) == ("none", None, 5, [], [])
    north = replace(members, decode=workers(members.dcs, (member("decode-north", NORTH),)))
    assert seen(router().plan(request(21, {"east": 5}), north))[3] == ["0-5@east"]


def test_prefill_computes_what_only_a_suspect_of_its_own_pool_holds() -> None:
    members = suspected(EVERYBODY, "pool-east", "pool-west:1")
    plan = router().plan(request(21, {"west": 3}), members)
    assert seen(plan) == ("remote", "prefill-east", 5, ["3-5@east"], [])
    # Home may ask a third datacenter that prefill's pool does not, and the other way round.
    held = {"north": 3}
    members = suspected(EVERYBODY, "pool-east", "pool-north:1")
    plan = router().plan(request(29, held), members)
    assert seen(plan) == ("remote", "prefill-east", 7, ["0-3@north", "3-7@east"], [])
    members = suspected(EVERYBODY, "pool-west", "pool-north:1")
    plan = router().plan(request(29, held), members)
    assert seen(plan)[3:] == (["0-7@east"], [])


def test_one_suspected_node_of_many_takes_its_share_out_of_the_sources() -> None:
    two = ("e1", "e2")
    held = {WorkerId(name): share(name, two) for name in two}
    members = view((DECODE_WEST,), (PREFILL_WEST,), nodes_of(EAST, *two) | nodes_of(WEST, "w1"))
    plan = router().plan(RequestFacts(21, KEYS[:5], held), suspected(members, "w1", "e2:1"))
    first_lost = next(block for block, mask in enumerate(held[WorkerId("e2")].groups) if mask)
    assert plan.usable_blocks == first_lost
    assert all(source.nodes == ("e1:1", "e2:1") for source in plan.decode_sources), "places follow from all nodes"


def test_many_blocks_on_many_nodes_are_planned_in_milliseconds() -> None:
    keys = [BlockKey(hashlib.sha256(b"%d" % block).digest()) for block in range(2048)]
    east, west = [f"e{i}" for i in range(4)], [f"w{i}" for i in range(4)]
    pools = nodes_of(EAST, *east) | nodes_of(WEST, *west)
    held = {WorkerId(name): held_by_one([1] * 2000 + [0] * 48) for name in (*east, *west)}
    facts = RequestFacts(2048 * 4 + 1, keys, held)
    members = view((DECODE_WEST,), (PREFILL_EAST, PREFILL_WEST), pools)
    plan = router().plan(facts, members)
    assert (plan.usable_blocks, sources_text(plan.decode_sources)) == (2000, ["2000-2048@east"])
    fastest = min(timeit.repeat(lambda: router().plan(facts, members), number=1, repeat=10))
    assert fastest < 0.01


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_cached", [0, 2])
def test_a_prompt_that_is_told_of_is_computed_by_decode_alone(policy: str, num_cached: int) -> None:
    """Its keys are those of the blocks that caches may provide; whoever could prefill the rest is not asked."""
    asked = replace(request(40, {"east": num_cached, "west": num_cached}), keys=KEYS[:num_cached], is_scored=True)
    asked = replace(asked, held={pool: held_by_one([1] * num_cached) for pool in asked.held})
    chosen = policy_of(GatewaySettings(routing_policy=policy))
    plan = router(policy=chosen).plan(asked, EVERYBODY)
    assert (plan.kind, plan.prefill, plan.prefill_spares) == ("decode_only", None, ())
    assert (plan.num_blocks, plan.decode_sources) == (num_cached, ())
    plain = router(policy=chosen).plan(request(40, {"west": num_cached}), EVERYBODY)
    assert plan.num_blocks < plain.num_blocks or plain.prefill is None
