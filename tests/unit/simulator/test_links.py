import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from simulator.events import EventLoop
from simulator.network.capacity import FluctuatingCapacity, ScheduledCapacity, mathis_bytes_per_s
from simulator.network.links import LinkSpec, SharedLink, Transfer


def send_all(link: SharedLink, num_bytes: float, on_arrived: Callable[[], None]) -> None:
    send(link, num_bytes, on_arrived)


def send(link: SharedLink, num_bytes: float, on_arrived: Callable[[], None]) -> Transfer:
    transfer = link.open(on_arrived)
    transfer.offer(num_bytes)
    transfer.close()
    return transfer


class Wire:
    """A link, and when each transfer arrived."""

    def __init__(self, **spec: Any) -> None:
        self.loop = EventLoop()
        self.link = SharedLink(LinkSpec("a", "b", **{"bytes_per_s": 100.0, **spec}), self.loop, "seed")
        self.arrived: dict[str, float] = {}

    def send(self, name: str, at_s: float, num_bytes: float) -> None:
        self.loop.at(at_s, partial(send_all, self.link, num_bytes, self.note(name)))

    def note(self, name: str) -> Callable[[], None]:
        return lambda: self.arrived.__setitem__(name, self.loop.now_s)


def test_a_transfer_alone_takes_its_bytes_over_the_rate_and_half_a_round_trip() -> None:
    wire = Wire(round_trip_s=0.5)
    wire.send("only", 1.0, 200)
    wire.loop.run()
    assert wire.arrived == {"only": pytest.approx(1.0 + 2.0 + 0.25)}
    assert wire.link.crossed_bytes == pytest.approx(200)
    assert wire.link.busy_s == pytest.approx(2.0)


def test_transfers_share_equally_and_the_rest_speeds_up_when_one_ends() -> None:
    wire = Wire()
    wire.send("short", 0.0, 100)
    wire.send("long", 0.0, 300)
    wire.send("later", 1.0, 50)
    wire.loop.run()
    # 50 each until 1 s; then a third each: 50 left of short and of later take 1.5 s; then long has all of it.
    assert wire.arrived["short"] == wire.arrived["later"] == pytest.approx(2.5)
    assert wire.arrived["long"] == pytest.approx(2.5 + (300 - 50 - 50) / 100)


def test_a_connection_carries_no_more_than_loss_and_round_trip_allow() -> None:
    limit = mathis_bytes_per_s(1448, 0.1, 1e-4)
    assert limit == pytest.approx(1448 / 0.1 * math.sqrt(1.5 / 1e-4))
    wire = Wire(bytes_per_s=1e9, round_trip_s=0.1, loss=1e-4, connections=4)
    wire.send("only", 0.0, 4 * limit)
    wire.loop.run()
    assert wire.arrived["only"] == pytest.approx(1.0 + 0.05)


def test_no_loss_is_no_limit_and_all_loss_is_an_error() -> None:
    assert mathis_bytes_per_s(1448, 0.1, 0.0) == math.inf
    assert mathis_bytes_per_s(1448, 0.0, 0.1) == math.inf
    with pytest.raises(ValueError, match="lost segments"):
        mathis_bytes_per_s(1448, 0.1, 1.0)


def test_a_source_that_has_nothing_leaves_the_link_to_others() -> None:
    wire = Wire()
    slow = wire.link.open(wire.note("slow"))
    for at_s in (0.0, 2.0, 4.0):
        wire.loop.at(at_s, lambda: slow.offer(50))
    wire.loop.at(4.0, slow.close)
    wire.send("other", 0.0, 150)
    wire.loop.run()
    assert wire.arrived["other"] == pytest.approx(2.0)  # 50 beside slow's first piece in 1 s, then 100 alone
    assert wire.arrived["slow"] == pytest.approx(4.5)


def test_bytes_offered_while_others_flow_are_appended() -> None:
    wire = Wire()
    transfer = wire.link.open(wire.note("grown"))
    wire.loop.at(0.0, lambda: transfer.offer(100))
    wire.loop.at(0.5, lambda: transfer.offer(100))
    wire.loop.at(0.5, transfer.close)
    wire.loop.run()
    assert wire.arrived["grown"] == pytest.approx(2.0)


def test_capacity_follows_its_schedule_and_a_cut_off_only_delays() -> None:
    wire = Wire(capacity=ScheduledCapacity(((1.0, 0.0), (4.0, 0.5))))
    wire.send("cut", 0.0, 200)
    wire.loop.run()
    assert wire.arrived["cut"] == pytest.approx(1.0 + 3.0 + 2.0)


def test_an_abandoned_transfer_frees_the_link_and_never_arrives() -> None:
    wire = Wire()
    gone = send(wire.link, 1000, wire.note("gone"))
    wire.send("stays", 0.0, 100)
    wire.loop.at(1.0, gone.abandon)
    wire.loop.run()
    assert wire.arrived == {"stays": pytest.approx(1.5)}
    assert wire.link.backlog_bytes == 0.0


def test_backlog_is_what_was_offered_and_is_not_there_yet() -> None:
    wire = Wire()
    wire.send("only", 0.0, 300)
    seen: list[float] = []
    wire.loop.at(1.0, lambda: seen.append(wire.link.backlog_bytes))
    wire.loop.run()
    assert seen == [pytest.approx(200)]


def test_fluctuation_is_seeded_bounded_and_has_its_deviation() -> None:
    process = FluctuatingCapacity(sigma=0.3, period_s=1.0, memory_s=5.0, most=10.0)
    steps = process.steps("seed")
    shares = [next(steps).share for _ in range(20_000)]
    again = process.steps("seed")
    assert shares[:5] == [next(again).share for _ in range(5)]
    logs = [math.log(share) for share in shares]
    mean = sum(logs) / len(logs)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in logs) / len(logs))
    assert abs(mean) < 0.05
    assert deviation == pytest.approx(0.3, rel=0.1)


def test_a_schedule_must_ascend() -> None:
    with pytest.raises(ValueError, match="ascend"):
        ScheduledCapacity(((2.0, 1.0), (1.0, 0.5)))
    assert ScheduledCapacity.dip(1.0, 2.0, 0.1).changes == ((1.0, 0.1), (2.0, 1.0))
