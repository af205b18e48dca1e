"""What who watches is shown of processes and links."""

from typing import Any

from services.gateway.cluster.registry import Registry
from services.gateway.live.cluster import SUSPECT_AFTER_S, cluster_of
from services.gateway.live.latest_plan import LatestPlan
from shared.bus.events import LinkLoad, LoadEvent, MembershipEvent, Role
from shared.ids import Datacenter, Epoch, LayoutHash, ModelFingerprint, WorkerId

MODEL, LAYOUT = ModelFingerprint("f" * 64), LayoutHash("l" * 64)


class World:
    """A registry whose processes say what a test lets them say."""

    def __init__(self) -> None:
        self.registry = Registry(MODEL, LAYOUT)

    def announce(self, worker: str, role: Role, dc: str, now: float, **changes: Any) -> None:
        event = MembershipEvent(
            worker=WorkerId(worker),
            role=role,
            dc=Datacenter(dc),
            address=f"{worker}:1",
            epoch=Epoch(changes.pop("epoch", 1)),
            **{"fingerprint": MODEL, "layout_hash": LAYOUT, **changes},
        )
        self.registry.apply_membership(event, now)

    def report(self, worker: str, now: float, **figures: Any) -> None:
        load = LoadEvent(
            **{
                "worker": WorkerId(worker),
                "epoch": Epoch(1),
                "running": 0,
                "waiting": 0,
                "kv_usage": 0.0,
                "speed_tokens_per_s": 0.0,
                "at_ms": 1,
                **figures,
            }
        )
        self.registry.apply_load(load, now)

    def shown(self) -> dict[str, Any]:
        return cluster_of(self.registry.known(), "west")

    def states(self) -> dict[str, str]:
        shown = self.shown()
        return {process["id"]: process["state"] for process in (*shown["workers"], *shown["pools"])}


def test_home_is_first_and_loads_are_shown() -> None:
    world = World()
    world.announce("prefill-east", "prefill", "east", 1.0)
    world.announce("decode-west", "decode", "west", 1.0)
    world.report("decode-west", 1.5, running=3, waiting=2, kv_usage=0.5, queued_s=0.25)
    shown = world.shown()
    assert shown["datacenters"] == ["west", "east"]
    decode, prefill = shown["workers"]
    assert (decode["running"], decode["waiting"], decode["kv_usage"], decode["queued_s"]) == (3, 2, 0.5, 0.25)
    assert prefill["kv_usage"] is None, "nothing was said yet"


def test_a_killed_worker_is_suspect_within_two_seconds_and_gone_when_no_plan_takes_it() -> None:
    world = World()
    world.announce("decode-west", "decode", "west", 0.0)
    world.announce("prefill-east", "prefill", "east", 0.0)
    found = []
    for tick in range(1, 16):
        world.report("decode-west", tick / 2)
        found.append(world.states()["prefill-east"])
    assert found[: int(2 * SUSPECT_AFTER_S)] == ["ready"] * int(2 * SUSPECT_AFTER_S)
    assert found[3] == "suspect"
    assert found[-1] == "gone"
    assert world.states()["decode-west"] == "ready"


def test_a_failed_call_shows_at_once_and_a_sign_of_life_takes_it_back() -> None:
    world = World()
    world.announce("prefill-east", "prefill", "east", 0.0)
    world.registry.lost(WorkerId("prefill-east"))
    assert world.states() == {"prefill-east": "suspect"}
    assert world.shown()["workers"][0]["reason"] == "a call to it has failed"
    world.report("prefill-east", 0.5)
    assert world.states() == {"prefill-east": "ready"}


def test_one_that_has_left_is_gone_and_disappears_after_a_while() -> None:
    world = World()
    world.announce("decode-west", "decode", "west", 0.0)
    world.announce("prefill-east", "prefill", "east", 0.0, left=True)
    assert world.states() == {"decode-west": "ready", "prefill-east": "gone"}
    world.report("decode-west", 1_000.0)
    assert world.states() == {"decode-west": "ready"}
    assert world.shown()["datacenters"] == ["west"]


def test_a_load_is_forgotten_with_the_life_that_reported_it() -> None:
    world = World()
    world.announce("decode-west", "decode", "west", 0.0)
    world.report("decode-west", 0.5, running=7)
    world.announce("decode-west", "decode", "west", 1.0)
    assert world.shown()["workers"][0]["running"] == 7, "the same life said so"
    world.announce("decode-west", "decode", "west", 2.0, epoch=2)
    assert "running" not in world.shown()["workers"][0]


def test_links_add_up_what_the_receiving_pools_say() -> None:
    world = World()
    for node in ("a", "b"):
        world.announce(node, "cachepool", "west", 0.0)
        world.report(node, 0.5, links=(LinkLoad(Datacenter("east"), 1e6, 10, 100, 0.02),))
    world.announce("c", "cachepool", "east", 0.0)
    world.report("c", 0.5, links=(LinkLoad(Datacenter("west"), 0.0, 0, 0),))
    assert world.shown()["links"] == [
        {
            "from": "east",
            "to": "west",
            "goodput_bytes_per_s": 2e6,
            "backlog_bytes": 20,
            "crossed_bytes": 200,
            "round_trip_s": 0.02,
        },
        {
            "from": "west",
            "to": "east",
            "goodput_bytes_per_s": None,
            "backlog_bytes": 0,
            "crossed_bytes": 0,
            "round_trip_s": None,
        },
    ]


def test_a_plan_is_worked_out_once_for_each_look_and_grows_old() -> None:
    states: list[object | None] = [None]
    made: list[object] = []
    now = [0.0]

    def answer(state: object) -> dict[str, Any]:
        made.append(state)
        return {"age_s": 1.0}

    plan = LatestPlan(lambda: states[-1], answer, lambda: now[0])
    assert plan.current() is None
    states.append(object())
    assert plan.current() == {"age_s": 1.0}
    now[0] = 2.5
    assert plan.current() == {"age_s": 3.5}
    assert len(made) == 1
    states.append(object())
    assert plan.current() == {"age_s": 1.0}
