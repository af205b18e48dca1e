"""Who is alive and usable, with a clock of our own."""

from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from services.gateway.cluster.assigned import PromptWork
from services.gateway.cluster.fleet import STALE_AFTER_S
from services.gateway.cluster.links import FORGOTTEN_AFTER_S
from services.gateway.cluster.registry import Registry
from services.gateway.cluster.workers import PRIOR
from shared.bus.events import LinkLoad, LoadEvent, MembershipEvent, Role
from shared.ids import Datacenter, Epoch, LayoutHash, ModelFingerprint, WorkerId
from shared.step_profile import StepProfile

FINGERPRINT, LAYOUT = ModelFingerprint("f" * 64), LayoutHash("l" * 64)


@pytest.fixture
def registry() -> Registry:
    return Registry(FINGERPRINT, LAYOUT)


def joined(
    worker: str,
    role: Role = "decode",
    *,
    epoch: int = 1,
    left: bool = False,
    fingerprint: str = FINGERPRINT,
    layout: str = LAYOUT,
    address: str = "h:1",
) -> MembershipEvent:
    return MembershipEvent(
        worker=WorkerId(worker),
        role=role,
        dc=Datacenter("west"),
        address=address,
        fingerprint=ModelFingerprint(fingerprint),
        layout_hash=LayoutHash(layout),
        model_name="m",
        epoch=Epoch(epoch),
        pool_address="p:1",
        left=left,
    )


def load(worker: str, *, epoch: int = 1, running: int = 0, waiting: int = 0) -> LoadEvent:
    return LoadEvent(
        worker=WorkerId(worker),
        epoch=Epoch(epoch),
        running=running,
        waiting=waiting,
        kv_usage=0,
        speed_tokens_per_s=0,
        at_ms=0,
    )


def decoders(registry: Registry) -> list[str]:
    return sorted(member.worker for member in registry.view().decode)


def num_requests(registry: Registry) -> float:
    """Of the first decode worker."""
    return float(registry.view().decode.rows["requests"][0])


def test_members_by_role(registry: Registry) -> None:
    registry.apply_membership(joined("d"), 0)
    registry.apply_membership(joined("p", "prefill"), 0)
    registry.apply_membership(joined("c", "cachepool", fingerprint="", layout="", address="c:1"), 0)
    view = registry.view()
    assert [m.worker for m in view.decode] == ["d"]
    assert [m.worker for m in view.prefill] == ["p"]
    assert {holder: pool.address for holder, pool in view.pools.items()} == {"c": "c:1"}
    assert view.problems == ()
    assert registry.pool_at("c:1") == "c"
    assert registry.pool_at("h:1") is None


def test_a_member_has_the_threads_that_it_announced(registry: Registry) -> None:
    registry.apply_membership(replace(joined("d"), codec_threads=3), 0)
    assert registry.view().decode[0].codec_threads == 3


def test_silence_makes_stale_only_while_others_speak(registry: Registry) -> None:
    registry.apply_membership(joined("quiet"), 0)
    registry.apply_membership(joined("loud"), 0)
    # Nobody is heard for a day: the broker is away, which says nothing about the workers.
    assert decoders(registry) == ["loud", "quiet"]
    registry.apply_load(load("loud"), STALE_AFTER_S)
    assert decoders(registry) == ["loud", "quiet"]
    registry.apply_load(load("loud"), STALE_AFTER_S + 0.1)
    assert decoders(registry) == ["loud"]
    assert registry.view().problems == ("quiet: silent for 6 s",)
    registry.apply_load(load("quiet"), STALE_AFTER_S + 0.2)
    assert decoders(registry) == ["loud", "quiet"]


def test_a_worker_that_left_stays_away_until_a_newer_epoch(registry: Registry) -> None:
    registry.apply_membership(joined("d"), 0)
    registry.apply_membership(joined("d", left=True), 1)
    assert decoders(registry) == []
    assert not registry.apply_membership(joined("d"), 2)  # an event that was overtaken by the farewell
    registry.apply_load(load("d"), 2)
    assert decoders(registry) == []
    assert registry.apply_membership(joined("d", epoch=2), 3)
    assert decoders(registry) == ["d"]


def test_the_newest_epoch_wins(registry: Registry) -> None:
    assert registry.apply_membership(joined("d", epoch=5, address="new:1"), 0)
    assert not registry.apply_membership(joined("d", epoch=5, address="new:1"), 1)
    assert not registry.apply_membership(joined("d", epoch=4, address="old:1"), 2)
    registry.apply_membership(joined("d", epoch=4, left=True), 3)  # the old process says good-bye late
    registry.apply_load(load("d", epoch=4, running=9), 3)
    (member,) = registry.view().decode
    assert (member.address, num_requests(registry)) == ("new:1", 0)
    registry.apply_load(load("d", epoch=5, running=2, waiting=1), 3)
    registry.apply_membership(joined("d", epoch=6), 4)
    assert num_requests(registry) == 0  # a new process starts without work


@pytest.mark.parametrize(
    ("change", "word"), [({"fingerprint": "e" * 64}, "another model"), ({"layout": "e" * 64}, "KV layout")]
)
def test_another_model_or_layout_is_unusable_and_logged_once(
    registry: Registry, change: dict[str, str], word: str
) -> None:
    with capture_logs() as logs:
        for now in range(3):
            registry.apply_membership(joined("d", **change), now)  # type: ignore[arg-type]
    assert [entry["event"] for entry in logs] == ["worker_unusable"]
    assert decoders(registry) == []
    (problem,) = registry.view().problems
    assert problem.startswith("d: ")
    assert word in problem


def test_a_lost_worker_is_unused_until_a_sign_of_life(registry: Registry) -> None:
    registry.apply_membership(joined("d"), 0)
    registry.lost(WorkerId("d"))
    registry.lost(WorkerId("nobody"))
    assert decoders(registry) == []
    assert registry.view().problems == ("d: a call to it has failed",)
    registry.apply_load(load("d"), 1)
    assert decoders(registry) == ["d"]


def test_load_is_the_report_or_what_we_have_sent_meanwhile(registry: Registry) -> None:
    registry.apply_membership(joined("d"), 0)
    registry.apply_load(load("d", running=2, waiting=1), 0)
    assert num_requests(registry) == 3
    worker = WorkerId("d")
    assignments = [registry.assign(worker) for _ in range(4)]
    assert num_requests(registry) == 4
    for assignment in assignments:
        registry.release(assignment)
    assert num_requests(registry) == 3
    registry.apply_load(load("stranger", running=1), 0)
    assert decoders(registry) == ["d"]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_report_is_written_into_the_workers_row_and_its_queue_works_off(registry: Registry) -> None:
    clock = Clock()
    registry = Registry(FINGERPRINT, LAYOUT, clock)
    registry.apply_membership(replace(joined("d"), capacity=1000), clock.now)
    assert registry.view().decode.rows["token_s"][0] == PRIOR.token_s
    profile = StepProfile(0.1, 0.2, 0.3, 0.4, 0.5, 6.0)
    report = replace(load("d", running=2), kv_usage=0.25, step_profile=profile, queued_s=2.0, queued_tokens=400)
    registry.apply_load(replace(report, context_tokens=70, step_tokens=32, busy=0.5), clock.now)
    (row,) = registry.view().decode.rows
    assert [row[name] for name in ("base_s", "token_s", "pair_s", "row_s", "context_s")] == list(profile[:5])
    figures = ("running", "queued_s", "queued_tokens", "context_tokens", "free_tokens", "step_tokens", "busy")
    assert [row[name] for name in figures] == [2, 2.0, 400, 70, 750, 32, 0.5]
    clock.now += 0.5
    (row,) = registry.view().decode.rows
    assert (row["queued_s"], row["queued_tokens"]) == (1.5, 300)
    clock.now += 5
    assert registry.view().decode.rows["queued_s"][0] == 0


def test_a_wait_before_a_worker_counts_as_its_queue_for_who_looks(registry: Registry) -> None:
    for worker in ("d", "e"):
        registry.apply_membership(joined(worker), 0)
    waits = {WorkerId("e"): 1.5, WorkerId("gone"): 9.0}
    assert registry.view(waits).decode.rows["queued_s"].tolist() == [0, 1.5]
    assert registry.view().decode.rows["queued_s"].tolist() == [0, 0]


def test_what_was_sent_counts_until_a_report_knows_of_it() -> None:
    clock = Clock()
    registry = Registry(FINGERPRINT, LAYOUT, clock)
    registry.apply_membership(replace(joined("p", "prefill"), capacity=1000), clock.now)

    def queue() -> tuple[float, float, float]:
        row = registry.view().prefill.rows[0]
        return float(row["queued_s"]), float(row["queued_tokens"]), float(row["free_tokens"])

    assignments = [registry.assign(WorkerId("p"), PromptWork(0.5, 100, 120)) for _ in range(2)]
    assert queue()[:2] == (1.0, 200)
    registry.apply_load(load("p"), clock.now)  # it set out before the calls came
    assert queue() == (1.0, 200, 1000 - 240)
    registry.release(assignments[0])
    assert queue()[0] == 0.5
    clock.now += 1
    registry.apply_load(replace(load("p"), queued_s=0.25), clock.now)
    assert queue()[0] == 0.25
    assert registry.view().prefill.rows["requests"][0] == 1, "the call is still open"
    registry.release(assignments[1])
    assert registry.view().prefill.rows["requests"][0] == 0


def test_calls_to_a_silent_worker_are_lost_and_those_of_others_are_not() -> None:
    registry = Registry(FINGERPRINT, LAYOUT, Clock())
    lost: list[str] = []
    for worker in ("d", "e"):
        registry.apply_membership(joined(worker), 100)
        for call in (1, 2):
            registry.assign(WorkerId(worker), lose=lambda name=f"{worker}{call}": lost.append(name))  # type: ignore[misc]
    registry.assign(WorkerId("d"))  # one that cannot be ended
    registry.apply_load(load("e"), 100 + STALE_AFTER_S)
    registry.lose_silent()
    assert lost == [], "d has been silent for no longer than it may"
    registry.apply_load(load("e"), 100.1 + STALE_AFTER_S)
    registry.lose_silent()
    assert sorted(lost) == ["d1", "d2"]


def test_nobody_is_lost_because_the_bus_is_silent() -> None:
    clock = Clock()
    registry = Registry(FINGERPRINT, LAYOUT, clock)
    registry.apply_membership(joined("d"), clock.now)
    registry.assign(WorkerId("d"), lose=lambda: pytest.fail("lost"))
    clock.now += 100
    registry.lose_silent()


def test_a_row_says_how_often_requests_found_prompts_waiting() -> None:
    clock = Clock()
    registry = Registry(FINGERPRINT, LAYOUT, clock)
    registry.apply_membership(joined("p", "prefill"), clock.now)

    def seen_busy() -> float:
        return float(registry.view().prefill.rows["seen_busy"][0])

    for _ in range(50):  # one after another
        registry.release(registry.assign(WorkerId("p"), PromptWork(0.5, 100)))
    assert seen_busy() == 0
    for _ in range(100):
        registry.assign(WorkerId("p"), PromptWork(0.5, 100))
    assert seen_busy() > 0.95


def test_what_crosses_counts_as_backlog_until_the_pool_reports() -> None:
    clock, west, east = Clock(), Datacenter("west"), Datacenter("east")
    registry = Registry(FINGERPRINT, LAYOUT, clock)
    registry.apply_membership(joined("pool", "cachepool"), clock.now)
    registry.apply_load(replace(load("pool"), links=(LinkLoad(east, 1e8, 5, 7, 0.04),)), clock.now)
    registry.note_crossing(east, west, 1000.0)
    view = registry.view()
    numbers = view.dcs.index(east) if east in view.dcs else None
    assert numbers is not None
    at = numbers, view.dcs.index(west)
    assert (view.links.goodput_bytes_per_s[at], view.links.backlog_bytes[at]) == (1e8, 1005)
    assert view.links.round_trip_s[at] == 0.04
    clock.now += 1
    registry.apply_load(replace(load("pool"), links=(LinkLoad(east, 1e8, 600, 7, 0.04),)), clock.now)
    assert registry.view().links.backlog_bytes[at] == 600
    registry.note_crossing(east, west, 1000.0, after_s=2.0)  # decode is in a step: nobody has asked the pool for it
    for now_s, backlog_bytes in ((1, 1600), (3, 600)):
        clock.now += now_s
        registry.apply_load(replace(load("pool"), links=(LinkLoad(east, 1e8, 600, 7, 0.04),)), clock.now)
        assert registry.view().links.backlog_bytes[at] == backlog_bytes


def test_a_worker_that_changes_its_role_is_in_one_table_only(registry: Registry) -> None:
    registry.apply_membership(joined("w"), 0)
    registry.apply_membership(joined("w", "prefill", epoch=2), 1)
    view = registry.view()
    assert (len(view.decode), [member.worker for member in view.prefill]) == (0, ["w"])


def test_a_call_counts_where_it_was_made_whatever_becomes_of_the_worker() -> None:
    clock = Clock()
    registry = Registry(FINGERPRINT, LAYOUT, clock)
    unknown = registry.assign(WorkerId("w"))
    registry.apply_membership(joined("w"), clock.now)
    registry.release(unknown)
    assert num_requests(registry) == 0
    before = registry.assign(WorkerId("w"))
    registry.apply_membership(joined("w", "prefill", epoch=2), clock.now)
    after = registry.assign(WorkerId("w"))
    registry.release(before)
    assert registry.view().prefill.rows["requests"].tolist() == [1]
    registry.release(after)
    assert registry.view().prefill.rows["requests"].tolist() == [0]


def test_crossings_that_nobody_reports_are_forgotten() -> None:
    clock, west, east = Clock(), Datacenter("west"), Datacenter("east")
    registry = Registry(FINGERPRINT, LAYOUT, clock)
    for _ in range(5):
        registry.note_crossing(east, west, 100.0)
        clock.now += FORGOTTEN_AFTER_S
    links, dcs = registry.view().links, registry.view().dcs
    assert links.backlog_bytes[dcs.index(east), dcs.index(west)] == 100


def test_a_pool_is_seen_with_its_links_as_it_last_reported_them(registry: Registry) -> None:
    registry.apply_membership(joined("pool", "cachepool"), 0)
    assert registry.view().pools[WorkerId("pool")].links == ()
    link = LinkLoad(Datacenter("east"), 1e8, 5, 7)
    registry.apply_load(replace(load("pool"), links=(link,)), 1)
    assert registry.view().pools[WorkerId("pool")].links == (link,)


def test_a_datacenter_suspects_whom_its_nodes_suspect_but_not_its_own(registry: Registry) -> None:
    for worker, dc in (("w1", "west"), ("w2", "west"), ("e1", "east"), ("e2", "east")):
        node = joined(worker, "cachepool", fingerprint="", layout="", address=f"{worker}:1")
        registry.apply_membership(replace(node, dc=Datacenter(dc)), 0)
    registry.apply_load(replace(load("w1"), suspects=("e1:1", "w2:1")), 1)
    registry.apply_load(replace(load("w2"), suspects=("e2:1",)), 1)
    view = registry.view()
    assert view.suspects(Datacenter("west")) == {"e1:1", "e2:1"}
    assert view.suspects(Datacenter("east")) == set()
    registry.apply_load(load("w1"), 2)
    assert registry.view().suspects(Datacenter("west")) == {"e2:1"}, "as long as a report says so"


def test_pools_are_looked_at_again_when_something_is_heard_of_one(registry: Registry) -> None:
    west = Datacenter("west")
    for worker in ("w1", "w2"):
        node = joined(worker, "cachepool", fingerprint="", layout="", address=f"{worker}:1")
        registry.apply_membership(replace(node, dc=west), 0)
    first = registry.view()
    assert registry.view().pools is first.pools, "what follows from them is worked out once"
    registry.apply_load(replace(load("w1"), suspects=("e1:1",), tier_bytes_per_s=5.0), 1)
    told = registry.view()
    assert (told.suspects(west), told.pools.tier_bytes_per_s[west]) == (frozenset({"e1:1"}), 5.0)
    assert (first.suspects(west), first.pools.tier_bytes_per_s[west]) == (frozenset(), 0.0), "a view is of its moment"
    registry.lost(WorkerId("w1"))
    assert registry.view().nodes(west) == ("w2:1",)
    registry.apply_load(load("w1"), 2)
    assert registry.view().nodes(west) == ("w1:1", "w2:1")
    registry.set_reachable(WorkerId("w2"), reachable=False)
    assert registry.view().nodes(west) == ("w1:1",)
    registry.set_reachable(WorkerId("w2"), reachable=True)
    registry.apply_load(load("w2"), STALE_AFTER_S + 1)
    assert registry.view().nodes(west) == ("w1:1", "w2:1")
    registry.apply_membership(joined("d"), STALE_AFTER_S + 2.1)  # w1 has been silent since 2
    assert registry.view().nodes(west) == ("w2:1",)
