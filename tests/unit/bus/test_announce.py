"""When a load is told: on a beat, and sooner when readers suppose something else or its owner has news."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from shared.bus import announce
from shared.bus.announce import Announcer, tells_much
from shared.bus.events import TOPIC_LOAD, LoadEvent, MembershipEvent
from shared.bus.producer import Producer
from shared.ids import Datacenter, Epoch, WorkerId
from tests.support.waiting import until

WORKER = WorkerId("prefill-east")
IDLE = LoadEvent(
    worker=WORKER, epoch=Epoch(1), running=0, waiting=0, kv_usage=0.0, speed_tokens_per_s=0.0, at_ms=1_000_000
)


def later(ms: int, queued_s: float) -> LoadEvent:
    return replace(IDLE, at_ms=IDLE.at_ms + ms, queued_s=queued_s)


def test_what_is_worked_off_as_readers_suppose_is_no_news() -> None:
    told = later(0, 2.0)
    assert not tells_much(told, later(400, 1.6))
    assert not tells_much(told, later(400, 1.9)), "within a quarter of what they suppose"
    assert not tells_much(told, later(5000, 0.0))


def test_prompts_that_came_left_or_do_not_get_on_are_news() -> None:
    assert tells_much(IDLE, later(100, 0.5))
    assert not tells_much(IDLE, later(100, 0.1)), "that little changes no plan"
    assert tells_much(later(0, 8.0), later(100, 4.0))
    assert tells_much(later(0, 1.0), later(900, 1.0))


class Broker:
    connected = True

    async def wait_connected(self) -> int:
        return 1


class Recording(Producer):
    """Keeps the load events that leave."""

    def __init__(self) -> None:
        self.bus = Broker()  # type: ignore[assignment]
        self.loads: list[LoadEvent] = []

    def publish(self, topic: str, key: str, value: bytes | None, headers: Any = ()) -> bool:
        if topic == TOPIC_LOAD and value is not None:
            self.loads.append(LoadEvent.decode(value))
        return True


async def test_news_leaves_before_the_next_beat_but_not_at_any_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announce, "LOAD_EVERY_S", 60.0)
    monkeypatch.setattr(announce, "SOONEST_S", 0.02)
    producer, current = Recording(), IDLE
    membership = MembershipEvent(
        worker=WORKER, role="prefill", dc=Datacenter("east"), address="127.0.0.1:1", epoch=Epoch(1)
    )
    task = asyncio.create_task(Announcer(producer, membership, lambda: current).run())
    await until(lambda: producer.loads)
    await asyncio.sleep(0.1)
    assert len(producer.loads) == 1, "nothing has changed"
    current = later(100, 3.0)
    await until(lambda: len(producer.loads) > 1)
    await asyncio.sleep(0.1)
    assert [load.queued_s for load in producer.loads] == [0.0, 3.0]
    task.cancel()
    await asyncio.wait({task})


async def test_what_the_owner_says_is_news_leaves_before_the_next_beat_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announce, "LOAD_EVERY_S", 60.0)
    monkeypatch.setattr(announce, "SOONEST_S", 0.02)
    producer = Recording()
    membership = MembershipEvent(
        worker=WORKER, role="cachepool", dc=Datacenter("east"), address="127.0.0.1:1", epoch=Epoch(1)
    )
    announcer = Announcer(producer, membership, lambda: IDLE)
    task = asyncio.create_task(announcer.run())
    await until(lambda: producer.loads)
    for _ in range(20):
        announcer.soon()
    await until(lambda: len(producer.loads) > 1)
    await asyncio.sleep(0.1)
    assert len(producer.loads) == 2
    task.cancel()
    await asyncio.wait({task})
