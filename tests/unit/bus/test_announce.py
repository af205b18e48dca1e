"""When a worker says how busy it is."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

from shared.bus.announce import LEAST_LOAD_EVERY_S, LOAD_EVERY_S, Announcer
from shared.bus.events import TOPIC_LOAD, LoadEvent, MembershipEvent
from shared.bus.producer import Producer
from shared.ids import Datacenter, Epoch, WorkerId
from tests.support.waiting import until

WORKER = WorkerId("pool-0")


class Published:
    """A producer that is always connected, and notes when load was published."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.bus = SimpleNamespace(wait_connected=self._connected)

    def publish(self, topic: str, _key: str, _value: bytes | None, _headers: Any = None) -> None:
        if topic == TOPIC_LOAD:
            self.at.append(time.monotonic())

    async def _connected(self) -> int:
        return 1


async def test_load_goes_out_on_every_beat_and_sooner_when_there_is_news() -> None:
    published = Published()
    membership = MembershipEvent(worker=WORKER, role="cachepool", dc=Datacenter("west"), address="w:1", epoch=Epoch(1))
    load = LoadEvent(worker=WORKER, epoch=Epoch(1), running=0, waiting=0, kv_usage=0.0, speed_tokens_per_s=0.0, at_ms=1)
    announcer = Announcer(cast(Producer, published), membership, lambda: load)
    running = asyncio.create_task(announcer.run())
    try:
        await until(lambda: len(published.at) == 2)
        announcer.soon()
        await until(lambda: len(published.at) == 3)
        for _ in range(20):
            announcer.soon()
        await until(lambda: len(published.at) == 4)
        await until(lambda: len(published.at) == 5)
    finally:
        running.cancel()
        await asyncio.wait({running})
    beat_s, news_s, again_s, quiet_s = (b - a for a, b in zip(published.at, published.at[1:], strict=False))
    assert beat_s >= LOAD_EVERY_S * 0.98
    assert min(news_s, again_s) >= LEAST_LOAD_EVERY_S * 0.98
    assert min(news_s, again_s) < LOAD_EVERY_S
    assert quiet_s >= LOAD_EVERY_S * 0.98, "what was said before is no news"
