"""Where prompts go by cost, on workers and links of known speed. Blocks of 64 tokens of 64 KiB; home is west."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from services.gateway.cluster.devices import OnDevice
from services.gateway.cluster.links import Links
from services.gateway.cluster.workers import Workers
from services.gateway.routing.costs.candidates import alone_s, forecast_of, handed_over
from services.gateway.routing.costs.others import delay_on_way_s, on_shared_way
from services.gateway.routing.costs.transfer import Transfers, everybody
from services.gateway.routing.datacenters import Credit
from services.gateway.routing.facts import Facts
from services.gateway.routing.plan import RequestFacts, Slo
from services.gateway.routing.policies.cost import MAX_WAYS, ByCost
from services.gateway.routing.policy import Decision
from shared.ids import Datacenter, WorkerId
from shared.kv.layout import KvLayout, LayerSpec
from tests.support.members import member, workers

WEST, EAST, NORTH = DCS = (Datacenter("west"), Datacenter("east"), Datacenter("north"))
LAYOUT = KvLayout(tuple(LayerSpec(None, 4, 64) for _ in range(8)), "float16", 64)  # 64 KiB a block and layer
FAST = {"base_s": 0.005, "token_s": 2e-5, "pair_s": 0.0}
SLOW = {"base_s": 0.005, "token_s": 2e-4, "pair_s": 0.0}
GBIT = 125e6


def table(names: dict[str, Datacenter], **columns: Any) -> Workers:
    members = [member(name, dc) for name, dc in names.items()]
    figures = {"row_s": 1e-4, "context_s": 0.0, "step_tokens": 2048, "hand_over_bytes_per_s": 1e10, **columns}
    return workers(
        DCS, members, **{name: np.broadcast_to(value, len(members)).tolist() for name, value in figures.items()}
    )


def facts(num_tokens: int, gbit_s: float = 10.0, held: dict[Datacenter, int] | None = None, **more: Any) -> Facts:
    """Decode and prefill are slow at home; prefill is ten times as fast in the east."""
    num_blocks = num_tokens // 64
    credits = {
        dc: Credit(np.array([1] * blocks + [0] * (num_blocks - blocks), np.uint8), blocks)
        for dc, blocks in (held or {}).items()
    }
    links = Links.unknown(3)
    links.goodput_bytes_per_s[:] = gbit_s * GBIT
    links.round_trip_s[:] = 0.02
    given = Facts(
        request=RequestFacts(num_tokens, (b"",) * num_blocks),  # type: ignore[arg-type]
        layout=LAYOUT,
        home=WEST,
        dcs=DCS,
        decode=table({"decode": WEST}, **SLOW),
        prefill=table({"home": WEST, "away": EAST}, **{name: [SLOW[name], FAST[name]] for name in FAST}),
        links=links,
        suspects=frozenset(),
        credits=credits,
        num_usable=max((held or {}).values(), default=0),
        num_enough=(num_tokens - 1) // 64,
        codec="raw",
    )
    return replace(given, **more)


def choice(given: Facts) -> str:
    """Return the prefill worker, or that decode stays alone."""
    decision = ByCost().decide(given)
    return str(given.prefill[decision.prefill[0]].worker) if decision.prefill else "decode alone"


def test_short_prompts_stay_and_long_ones_go_where_they_are_computed_soonest() -> None:
    assert choice(facts(40)) == "decode alone"
    assert choice(facts(100)) == "decode alone"
    assert choice(facts(8000)) == "away"


def test_the_length_from_which_prompts_go_away_follows_the_link() -> None:
    def threshold(gbit_s: float) -> int:
        return next(n for n in range(64, 64_000, 64) if choice(facts(n, gbit_s)) == "away")

    fast, slow = threshold(10), threshold(0.5)
    assert fast < slow
    assert choice(facts(32_000, 0.05)) != "away", "a link that carries less than home computes is not used"


def test_a_backlog_on_the_link_keeps_prompts_at_home_until_it_is_gone() -> None:
    assert choice(facts(4000)) == "away"
    given = facts(4000)
    given.links.backlog_bytes[1, 0] = 10 * 10 * GBIT
    assert choice(given) != "away"
    given.links.backlog_bytes[1, 0] = 0
    assert choice(replace(given)) == "away", "other facts: the same ones remember what was worked out of them"


def test_a_queue_at_the_worker_counts_like_any_other_time() -> None:
    given = facts(4000)
    given.prefill.rows["queued_s"] = [0.0, 5.0]
    assert choice(given) != "away"


def test_what_running_requests_wait_for_a_prompt_on_decode_is_counted() -> None:
    given = facts(1000, prefill=table({"home": WEST}, **SLOW))
    assert choice(given) == "decode alone"
    busy = replace(given, decode=table({"decode": WEST}, running=64.0, **SLOW))
    assert choice(busy) == "home"


def test_those_who_come_later_are_counted() -> None:
    two = table(
        {"often asked": EAST, "seldom asked": NORTH},
        arrivals_per_s=[9.0, 0.1],
        busy=[0.8, 0.1],
        seen_busy=[0.8, 0.1],
        **FAST,
    )
    assert choice(facts(8000, prefill=two)) == "seldom asked"


def test_a_client_that_waits_for_its_answers_is_not_counted_as_those_who_come_later() -> None:
    figures = {"arrivals_per_s": [9.0, 0.1], "busy": [0.8, 0.1], "queued_s": [0.0, 0.05]}
    two = table({"often asked": EAST, "seldom asked": NORTH}, seen_busy=[0.0, 0.1], **figures, **FAST)
    assert choice(facts(8000, prefill=two)) == "often asked"


def test_what_comes_is_shared_by_all_workers_of_a_datacenter() -> None:
    # One has seen more prompts than the other in the last seconds: that is chance, and tells nothing of who comes.
    two = table({"a": EAST, "b": EAST}, arrivals_per_s=[4.0, 0.0], busy=0.5, seen_busy=0.5, **FAST)
    drawn = {
        choice(replace(facts(8000, prefill=two), request=replace(facts(8000).request, draw=draw)))
        for draw in (0.0, 0.9)
    }
    assert drawn == {"a", "b"}


def test_a_prompt_is_not_computed_where_it_makes_running_requests_miss_their_slo() -> None:
    slow = table({"home": WEST}, queued_s=3.0, **SLOW)
    request = replace(facts(6000).request, slo=Slo(time_per_output_token_s=0.02), output_tokens=100)
    given = facts(6000, prefill=slow, request=request)
    assert choice(given) == "decode alone"
    assert choice(replace(given, decode=table({"decode": WEST}, running=10.0, **SLOW))) == "home"
    patient = replace(request, output_tokens=1000, slo=Slo(time_per_output_token_s=1.0))
    assert (
        choice(replace(given, request=patient, decode=table({"decode": WEST}, running=10.0, **SLOW))) == "decode alone"
    )


def test_of_equally_quick_decode_workers_the_emptiest_is_taken() -> None:
    two = table({"full": WEST, "empty": WEST}, requests=[19.0, 3.0], running=[19.0, 3.0], **{**SLOW, "row_s": 0.0})
    given = facts(8000, decode=two)
    assert given.decode[ByCost().decide(given).decode].worker == "empty"


def test_a_cached_prompt_needs_nobody() -> None:
    decision = ByCost().decide(facts(6400, held={WEST: 100}))
    assert decision.prefill == ()


def test_a_prefix_elsewhere_is_pulled_if_that_is_sooner_than_computing_it() -> None:
    given = facts(6400, held={NORTH: 100})
    decision = ByCost().decide(given)
    assert decision.pull_from == frozenset({NORTH})
    narrow = facts(6400, 0.01, held={NORTH: 100})
    decision = ByCost().decide(narrow)
    assert decision.pull_from is not None
    assert NORTH not in decision.pull_from


def test_an_slo_that_only_one_way_keeps_decides() -> None:
    # Away is sooner for this prompt, but decode alone takes from nobody.
    given = facts(3000, prefill=table({"away": EAST}, arrivals_per_s=20.0, busy=0.9, seen_busy=0.9, **FAST))
    assert choice(given) == "decode alone"
    away, alone = (forecast_of(given, Decision(0, rows)).ttft_s for rows in ((0,), ()))
    assert away < alone
    asking = replace(given, request=replace(given.request, slo=Slo(ttft_s=1.2 * away)))
    assert choice(asking) == "away"


def test_the_decode_worker_that_has_the_prompt_on_its_device_need_not_fetch_it() -> None:
    two = table({"one": WEST, "other": WEST}, hand_over_bytes_per_s=1e9, **SLOW)
    given = facts(6400, held={WEST: 100}, decode=two)
    for name in ("one", "other"):
        there = replace(given.request, on_device=OnDevice(WorkerId(name), 100), draw=0.99)
        seen = replace(given, request=there)
        assert seen.decode[ByCost().decide(seen).decode].worker == name


def test_equally_good_workers_are_drawn_by_chance() -> None:
    given = facts(8000, prefill=table({"a": EAST, "b": EAST, "c": EAST}, **FAST))
    drawn = {choice(replace(given, request=replace(given.request, draw=draw))) for draw in (0.0, 0.4, 0.9)}
    assert drawn == {"a", "b", "c"}


@pytest.mark.parametrize("rows", [(), (0,), (1,)])
def test_forecasts_say_what_a_plan_costs(rows: tuple[int, ...]) -> None:
    forecast = forecast_of(facts(6400), Decision(0, rows))
    assert forecast.ttft_s > 0
    assert forecast.work_s > 0
    crossing = sum(use.num_bytes for use in forecast.crossings)
    assert crossing == (99 * LAYOUT.block_bytes if rows == (1,) else 0)
    assert forecast.prefill_tokens == (99 * 64 if rows else 0)
    assert forecast.decode_tokens == (64 if rows else 6400)


def measured() -> dict[str, Any]:
    """Workers as in `facts`, with prefill in the east only, that have measured their steps."""
    return {
        "prefill": table({"away": EAST}, is_measured=True, **FAST),
        "decode": table({"decode": WEST}, is_measured=True, **SLOW),
    }


def test_what_decode_alone_would_take_rests_on_the_blocks_of_home() -> None:
    both = measured()
    alone = forecast_of(facts(6400, **both), Decision(0)).ttft_s
    assert alone_s(facts(6400, **both), Decision(0, (0,))) == alone
    assert alone_s(facts(6400, held={NORTH: 100}, **both), Decision(0)) == alone  # to be pulled
    assert alone_s(facts(6400, held={WEST: 50}, **both), Decision(0, (0,))) < 0.6 * alone


@pytest.mark.parametrize("unmeasured", ["prefill", "decode"])
def test_what_nobody_has_measured_is_not_known(unmeasured: str) -> None:
    both = measured()
    both[unmeasured].rows["is_measured"] = False
    assert math.isinf(alone_s(facts(6400, **both), Decision(0, (0,))))


def test_who_fills_a_slow_link_makes_later_prompts_wait_for_it() -> None:
    two = table({"a": EAST, "b": EAST}, arrivals_per_s=[0.2, 0.1], busy=0.3, seen_busy=0.3).rows
    slow, fast = (delay_on_way_s(two, np.full(2, way_s), np.full(2, 4 * way_s)) for way_s in (2.0, 0.2))
    assert slow == pytest.approx([2.0 * 0.3 * 8.0 / 0.4] * 2)  # 0.3 later prompts a second, and a link that is busy 0.6
    assert slow[0] > 100 * fast[0]
    assert on_shared_way(two, np.full(2, 2.0)) == pytest.approx([1 / (1 - 0.6)] * 2)
    in_turn = table({"a": EAST}, arrivals_per_s=0.3, busy=0.3, seen_busy=0.0).rows
    assert on_shared_way(in_turn, np.full(1, 2.0)) == 1
    assert delay_on_way_s(in_turn, np.full(1, 2.0), np.full(1, 8.0)) == 0, "nobody is on its way while another asks"


def test_a_batch_that_is_full_is_waited_for() -> None:
    given = facts(8000)
    full = table({"decode": WEST}, requests=40.0, running=10.0, max_batch=10.0, answer_tokens=100.0, **SLOW)
    step_s = SLOW["base_s"] + 10 * 1e-4
    assert forecast_of(given, Decision(0, (1,))).ttft_s < 0.3
    waiting = forecast_of(replace(given, decode=full), Decision(0, (1,))).ttft_s
    assert waiting == pytest.approx(31 / 10 * 100 * step_s, abs=0.05)


def test_what_comes_with_its_kv_does_not_wait_for_whole_prompts_on_decode() -> None:
    busy = table({"decode": WEST}, queued_s=30.0, **SLOW)
    given = facts(8000, decode=busy)
    assert forecast_of(given, Decision(0, (1,))).ttft_s < 2.0
    assert forecast_of(given, Decision(0)).ttft_s > 30.0
    held = facts(6400, held={WEST: 100}, decode=busy)
    assert forecast_of(held, Decision(0)).ttft_s < 2.0


def test_what_is_late_everywhere_is_collected_on_one_worker() -> None:
    figures = {"arrivals_per_s": 0.05, "busy": 0.8, "seen_busy": 0.8, **SLOW}
    two = table({"long queue": WEST, "short queue": WEST}, queued_s=[9.0, 3.0], **figures)
    decode = table({"decode": WEST}, queued_s=600.0, **SLOW)
    given = facts(30_000, prefill=two, decode=decode)
    in_time, late = (replace(given, request=replace(given.request, slo=Slo(ttft_s=s))) for s in (20.0, 2.0))
    assert choice(in_time) == "short queue"
    assert choice(late) == "long queue"


def test_decode_workers_that_keep_a_latency_target_are_not_spared_for_the_sake_of_it() -> None:
    slow = table({"home": WEST}, queued_s=3.0, **SLOW)
    request = replace(facts(6000).request, slo=Slo(time_per_output_token_s=0.02), output_tokens=100)
    batch = {**SLOW, "running": 10.0, "answer_tokens": 100.0}
    given = facts(6000, prefill=slow, request=request)
    assert choice(replace(given, decode=table({"decode": WEST}, **batch))) == "home"
    paced = {**batch, "step_tokens": 60.0}  # 60 tokens take 12 ms beside a step of 6
    assert choice(replace(given, decode=table({"decode": WEST}, **paced))) == "decode alone"


def test_a_tail_delays_nobody_on_a_busy_decode_worker_who_can_go_to_the_one_beside() -> None:
    figures = {"arrivals_per_s": 1.0, "busy": 0.5, "seen_busy": 0.5, **SLOW}
    alone = facts(8000, decode=table({"busy": WEST}, queued_s=30.0, **figures))
    beside = facts(8000, decode=table({"busy": WEST, "idle": WEST}, queued_s=[30.0, 0.0], **figures))
    others = [handed_over(Transfers(one), [[everybody(one)] * 3], decode=0)[0].others_s for one in (alone, beside)]
    assert (others[1] < 0.1 * others[0]).all()


def test_a_decision_tells_which_ways_it_has_compared_and_which_it_took() -> None:
    ways = ByCost().decide(facts(8192)).ways
    assert [way.cost_s for way in ways] == sorted(way.cost_s for way in ways)
    assert {(way.kind, way.member.worker) for way in ways} == {
        ("remote", "away"),
        ("local", "home"),
        ("decode_only", "decode"),
    }
    assert [(way.kind, way.member.worker) for way in ways if way.is_chosen] == [("remote", "away")]


def test_of_many_ways_few_are_told_and_the_one_taken_is_among_them() -> None:
    many = table({f"p{number}": EAST for number in range(100)}, **FAST)
    for draw in (0.0, 0.5, 0.999):
        given = facts(8192)
        decision = ByCost().decide(replace(given, prefill=many, request=replace(given.request, draw=draw)))
        assert len(decision.ways) <= MAX_WAYS
        assert [way.member.worker for way in decision.ways if way.is_chosen] == [many[decision.prefill[0]].worker]
