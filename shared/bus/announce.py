"""Tells everybody that this worker exists, where, and how busy it is, until it leaves."""

import asyncio
import time
from collections.abc import Callable

from shared.bus.events import TOPIC_LOAD, TOPIC_MEMBERSHIP, LoadEvent, MembershipEvent
from shared.bus.producer import Producer
from shared.log import get_logger

log = get_logger()

MEMBERSHIP_EVERY_S = 2.0
LOAD_EVERY_S = 0.5


class Announcer:
    """Announces on every beat while the broker is there, and at once when it is back; nothing queues up meanwhile."""

    def __init__(self, producer: Producer, membership: MembershipEvent, load: Callable[[], LoadEvent]) -> None:
        self._membership = membership
        self._producer = producer
        self._load = load
        self._left = False

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
            await asyncio.sleep(LOAD_EVERY_S)

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
