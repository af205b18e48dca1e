"""A pool, or a client of one, as a process that can be stopped and killed: `python -m tests.support.pool_peer ...`.

It is told what to do line by line, and prints a line when it has done it.
"""

import asyncio
import resource
import sys
from asyncio import InvalidStateError
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil

from shared.deadline import Deadline
from shared.errors import PrfaasError
from shared.kv.frame import Frame
from shared.lanes.settings import LaneName
from shared.lanes.slots import SlotMemory
from shared.pool.client import PoolClient
from shared.pool.lanes.chosen import PoolLanes
from shared.pool.publication import Publication
from shared.rpc.client import Channels
from tests.support.large import LARGE, LARGE_BYTES, LONG, Reading, large_frames, write_all
from tests.support.samples import wanting
from tests.support.shared_memory import LaneProcess, say
from tests.support.waiting import LIMIT_S


class PoolPeer(LaneProcess):
    """One such process."""

    module = "tests.support.pool_peer"


class _Client:
    """What a client's process has open."""

    def __init__(self, client: PoolClient, stack: AsyncExitStack) -> None:
        self._client = client
        self._stack = stack
        self._publication: Publication | None = None
        self._room: list[memoryview | None] = []
        self._frames: list[Frame] = []
        self._tasks: set[asyncio.Task[Reading]] = set()
        self.commands: dict[str, Callable[[], Awaitable[object]]] = {
            "attach": self._attach,
            "open": self._open,
            "room": self._ask_room,
            "send": self._send,
            "fetch": self._fetch,
            "check": self._check,
        }

    async def _attach(self) -> str:
        assert self._client._lanes is not None
        return (await self._client._lanes.to(self._client.address)).name

    async def _open(self) -> int:
        self._publication = await self._stack.enter_async_context(self._client.publish(Deadline.after(2 * LIMIT_S)))
        grant = await self._publication.open(LARGE, wanting(LONG, LARGE.all_layers))
        return sum(mask.bit_count() for mask in grant.granted)

    async def _ask_room(self) -> int:
        assert self._publication is not None
        self._room = await self._publication.room(LONG, LARGE_BYTES)
        return sum(slot is not None for slot in self._room)

    async def _send(self) -> int:
        """Write layer 0 into the room, or send it."""
        assert self._publication is not None
        frames = large_frames(LONG, 1)
        for slot, sent in zip(self._room, frames, strict=True):
            if slot is not None:
                slot[:] = sent.payload
        payloads = [sent.payload if slot is None else slot for slot, sent in zip(self._room, frames, strict=True)]
        await self._publication.send(
            [sent._replace(payload=payload) for sent, payload in zip(frames, payloads, strict=True)]
        )
        return len(frames)

    async def _fetch(self) -> int:
        """Read what is there, and hold it while the rest does not come."""
        has_come = asyncio.Event()

        async def then(frames: list[Frame]) -> None:
            self._frames += frames
            has_come.set()
            await asyncio.Event().wait()

        self._tasks.add(asyncio.create_task(Reading(self._client, LONG, wait_s=60.0).run(then)))
        await has_come.wait()
        return len(self._frames)

    async def _check(self) -> str:
        expected = {(sent.key, sent.layer): sent.payload for sent in large_frames(LONG)}
        intact = all(came.payload == expected[came.key, came.layer] for came in self._frames)
        return "intact" if intact else "changed"


async def _client(address: str, lane: LaneName, spare_bytes: int) -> None:
    """`spare_bytes`: of address space that the process gets beyond what it has; 0: any."""
    async with AsyncExitStack() as stack:
        channels = await stack.enter_async_context(Channels())
        lanes = PoolLanes(channels, (lane, "grpc"), SlotMemory(64 << 20, shared=False))
        stack.push_async_callback(lanes.close)
        client = _Client(PoolClient(channels, address, lanes=lanes), stack)
        if spare_bytes:
            await PoolClient(channels, address).lookup(LONG, Deadline.after(2 * LIMIT_S))  # gRPC has its threads then
            limit = psutil.Process().memory_info().vms + spare_bytes
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        say("ready")
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            try:
                say(await client.commands[line]())
            except (PrfaasError, InvalidStateError) as error:  # gRPC's, of a call that has ended
                say(type(error).__name__)


@asynccontextmanager
async def _pool(lane: LaneName, folder: str) -> AsyncIterator[None]:
    """A pool that has the first half of `LONG`."""
    from tests.support.pools import lanes_in_use, serving  # deferred: what a client's start need not wait for

    lanes_in_use.allowed = (lane, "grpc")
    lanes_in_use.folder = Path(folder)
    async with Channels() as channels, serving(channels, pool_bytes=64 << 20) as running:
        await write_all(running.client, LONG[: len(LONG) // 2])
        say(running.address)
        yield


async def main(kind: str, *arguments: str) -> None:
    if kind == "client":
        address, lane, spare_bytes = arguments
        await _client(address, lane, int(spare_bytes))  # type: ignore[arg-type]
        return
    lane, folder = arguments
    async with _pool(lane, folder):  # type: ignore[arg-type]
        while (await asyncio.to_thread(sys.stdin.readline)).strip():
            say("here")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
