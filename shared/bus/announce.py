"""Tells everybody that this worker exists, where, and how busy it is, until it leaves."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from shared.bus.events import TOPIC_LOAD, TOPIC_MEMBERSHIP, LoadEvent, MembershipEvent
from shared.bus.producer import Producer
from shared.log import get_logger

log = get_logger()

MEMBERSHIP_EVERY_S = 2.0
LOAD_EVERY_S = 0.5
LEAST_LOAD_EVERY_S = 0.1
"""The shortest time between two load events, however much there is to say."""


class Announcer:
    """Announces on every beat while the broker is there, and at once when it is back; nothing queues up meanwhile."""

    def __init__(self, producer: Producer, membership: MembershipEvent, load: Callable[[], LoadEvent]) -> None:
        self._membership = membership
        self._producer = producer
        self._load = load
        self._left = False
        self._has_news = asyncio.Event()

    def soon(self) -> None:
        """Announce the load before its time: it is not what it was."""
        self._has_news.set()

    async def run(self) -> None:
        """Announce until `leave`; meant for `background()`."""
        announced_at, generation = 0.0, 0
        while True:
            current = await self._producer.bus.wait_connected()
            if self._left:
                return
            due = time.monotonic() >= announced_at + MEMBERSHIP_EVERY_S
            if due or current != generation:
                announced_at, generation = time.monotonic(), current
                self._producer.publish(TOPIC_MEMBERSHIP, self._membership.worker, self._membership.encode())
            load = self._load()
            self._producer.publish(TOPIC_LOAD, load.worker, load.encode())
            await self._pause()

    async def _pause(self) -> None:
        """Wait until the load is to be announced again."""
        await asyncio.sleep(LEAST_LOAD_EVERY_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(LOAD_EVERY_S - LEAST_LOAD_EVERY_S):
                await self._has_news.wait()
        self._has_news.clear()

    async def leave(self, timeout_s: float = 1.0) -> None:
        """Say that the worker is going, and wait until that has left the process, `timeout_s` at most; idempotent."""
        if self._left:
            return
        self._left = True
        worker = self._membership.worker
        # The event carries the epoch that fences it; the tombstone lets compaction remove the key.
        self._producer.publish(TOPIC_MEMBERSHIP, worker, self._membership.leaving().encode())
        self._producer.publish(TOPIC_MEMBERSHIP, worker, None)
        if not self._producer.bus.connected or not await self._producer.flush(timeout_s):
            log.warning("leave_not_announced", worker=worker)
