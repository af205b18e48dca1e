"""What a pool holds for its clients, and whether it holds the same again later."""

import asyncio
from typing import NamedTuple, Self

from services.cachepool.serving.ends import LaneEnds
from tests.support.pools import Running
from tests.support.shared_memory import descriptors
from tests.support.waiting import LIMIT_S, until


class Held(NamedTuple):
    """Everything of a pool that must not outlive a stream, a client, or a test; `descriptors` are the process's."""

    num_taken: int  # slots that nobody has kept
    num_spare: int  # payloads that lie in memory and are no entry
    num_held: int  # views for processes that have the memory mapped
    num_attached: int
    num_links: int
    num_half_open: int
    room_bytes: int
    num_leases: int  # of readers and writers, and those who hold them
    num_descriptors: int


def ends_of(running: Running) -> LaneEnds:
    return running.pool.servicer._lanes._ends


def held(running: Running) -> Held:
    ends, store = ends_of(running), running.pool.store
    return Held(
        ends.memory.num_taken,
        ends.memory.num_kept - store.stats.num_entries,
        ends.door.num_held if ends.door is not None else 0,
        ends.door.num_clients if ends.door is not None else 0,
        len(ends.server._links) if ends.server is not None else 0,
        ends.server.num_half_open if ends.server is not None else 0,
        running.pool.servicer._lanes._room._given_bytes,
        store.stats.num_leases + store.stats.num_readers + store.stats.num_writers,
        descriptors(),
    )


class Ledger:
    """What a pool held when nobody asked anything of it."""

    def __init__(self, running: Running, before: Held) -> None:
        self._running = running
        self._before = before

    @classmethod
    async def of(cls, running: Running) -> Self:
        """Begin when all that was asked so far is over."""
        await until(lambda: _is_quiet(held(running)))
        return cls(running, held(running))

    async def balanced(self) -> None:
        """Wait until the pool holds no more than then; fail when it does not come to that."""
        deadline = asyncio.get_running_loop().time() + LIMIT_S
        while any(now > before for now, before in zip(held(self._running), self._before, strict=True)):
            assert asyncio.get_running_loop().time() < deadline, f"{held(self._running)} is not {self._before}"
            await asyncio.sleep(0.01)
        self._running.pool.store.check_integrity()


def _is_quiet(now: Held) -> bool:
    return not (now.num_taken or now.num_held or now.num_half_open or now.room_bytes or now.num_leases)
