"""What the sockets' fetch lane brings its reader: all that has come as one, and an end that loses nothing."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from shared.errors import LaneBroken, WorkerLost
from shared.kv.frame import Frame
from shared.pool.lanes import linked as module
from shared.pool.lanes.linked import LinkedFetch, LinkedLane
from shared.pool.wire import Unreadable
from shared.proto import prfaas_pb2 as pb
from tests.support.lanes import Ends, linked, plain, sealed
from tests.support.waiting import LIMIT_S, until

KIB = 1024
Reply = pb.FetchReply | list[Frame] | Unreadable
FRAMES = [sealed(number, 64 * KIB) for number in range(1, 6)]
HEARTBEAT, MISSING = pb.FetchReply(), pb.FetchReply(missing=pb.FetchMissing())


def sent(num_entries: int) -> pb.FetchReply:
    return pb.FetchReply(sent=pb.LaneCount(num_entries=num_entries))


class Replies:
    """Messages that a test lets come."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Reply | Exception | None] = asyncio.Queue()

    def say(self, *replies: Reply | Exception | None) -> None:
        """None ends them."""
        for reply in replies:
            self._queue.put_nowait(reply)

    async def __aiter__(self) -> AsyncGenerator[Reply, None]:
        while (reply := await self._queue.get()) is not None:
            if isinstance(reply, Exception):
                raise reply
            yield reply


def reading(ends: Ends) -> LinkedFetch:
    return LinkedLane(ends.far, verifies=False).fetching()


async def test_what_has_come_meanwhile_comes_as_one_in_its_order() -> None:
    replies = Replies()
    async with linked() as ends, asyncio.timeout(LIMIT_S):
        fetching = reading(ends)
        async with aclosing(fetching.arrivals(aiter(replies))) as arrivals:
            await ends.near.send(fetching.use.stream, FRAMES[:1])
            first = await anext(arrivals)
            for frame in FRAMES[1:]:
                await ends.near.send(fetching.use.stream, [frame])
            await until(lambda: ends.far.unread_bytes >= sum(len(frame.payload) for frame in FRAMES[1:]))
            await asyncio.sleep(0.01)
            replies.say(HEARTBEAT, sent(len(FRAMES)), None)
            rest = [arrived async for arrived in arrivals]
        assert [len(arrived.frames) for arrived in (first, *rest) if arrived.frames] == [1, 4]
        assert ends.far.unread_bytes == 0
        received = [frame for arrived in (first, *rest) for frame in arrived.frames]
        assert plain(received) == FRAMES
        assert sum(arrived.busy_s or 0.0 for arrived in (first, *rest)) > 0
        ends.far_slots.free_all(received)
        fetching.end()


async def test_the_stream_ends_when_as_many_have_come_as_were_announced() -> None:
    replies = Replies()
    async with linked() as ends, asyncio.timeout(LIMIT_S):
        fetching = reading(ends)
        async with aclosing(fetching.arrivals(aiter(replies))) as arrivals:
            replies.say(MISSING, sent(1), None)
            assert (await anext(arrivals)).frames == []
            last = asyncio.ensure_future(anext(arrivals))
            await asyncio.sleep(0.02)
            assert not last.done(), "an entry is on its way"
            await ends.near.send(fetching.use.stream, FRAMES[:1])
            received = (await last).frames
            assert await anext(arrivals, None) is None
        ends.far_slots.free_all(received)
        fetching.end()


async def test_what_the_messages_raise_is_raised_after_what_came_before() -> None:
    replies = Replies()
    async with linked() as ends, asyncio.timeout(LIMIT_S):
        fetching = reading(ends)
        async with aclosing(fetching.arrivals(aiter(replies))) as arrivals:
            replies.say(MISSING, WorkerLost("gone"))
            assert (await anext(arrivals)).missing == []
            with pytest.raises(WorkerLost, match="gone"):
                await anext(arrivals)
        fetching.end()


@pytest.mark.parametrize("is_cut", [True, False])
async def test_who_waits_in_vain_for_what_was_announced_is_told(is_cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAST_PATIENCE_S", LIMIT_S if is_cut else 0.05)
    replies = Replies()
    async with linked() as ends, asyncio.timeout(LIMIT_S):
        fetching = reading(ends)
        async with aclosing(fetching.arrivals(aiter(replies))) as arrivals:
            replies.say(sent(1), None)
            waiting = asyncio.ensure_future(anext(arrivals))
            await asyncio.sleep(0.01)
            if is_cut:
                ends.far.shut("cut")
            with pytest.raises(LaneBroken):
                await waiting
        fetching.end()
