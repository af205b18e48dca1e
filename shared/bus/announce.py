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

SOONEST_S = 0.1
"""Between two load events at least: what has changed much is told sooner than the next beat."""

MUCH_QUEUED_S = 0.2
"""A queue that is longer or shorter than a reader supposes by so many seconds is news..."""

MUCH_QUEUED = 0.25
"""... if it is so by this share of what the reader supposes, too."""


def tells_much(told: LoadEvent, now: LoadEvent) -> bool:
    """Return whether an engine's load has changed so much that readers should not plan with what they were told.

    A reader supposes that what waited when it was told has been worked off since.
    """
    passed_s = max(0, now.at_ms - told.at_ms) / 1000
    supposed_s = max(0.0, told.queued_s - passed_s)
    return abs(now.queued_s - supposed_s) > max(MUCH_QUEUED_S, MUCH_QUEUED * supposed_s)


class Announcer:
    """Announces on every beat while the broker is there, and at once when it is back; nothing queues up meanwhile.

    Between beats it tells a load that has changed a lot, or that its owner says is news.
    """

    def __init__(self, producer: Producer, membership: MembershipEvent, load: Callable[[], LoadEvent]) -> None:
        self._membership = membership
        self._producer = producer
        self._load = load
        self._has_news = False
        self._left = False

    def soon(self) -> None:
        """Announce the load before its time: it is not what it was."""
        self._has_news = True

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
            self._has_news = False
            told = self._load()
            self._producer.publish(TOPIC_LOAD, told.worker, told.encode())
            await self._until_due(told)

    async def _until_due(self, told: LoadEvent) -> None:
        """Wait for the next beat, or until the load has changed a lot since it was told."""
        due_s = time.monotonic() + LOAD_EVERY_S
        while (left_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(min(SOONEST_S, left_s))
            if self._has_news or tells_much(told, self._load()):
                return

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
