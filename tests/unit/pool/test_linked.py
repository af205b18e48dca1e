"""What the sockets' publish lane promises its writer: several batches under way, failures said, nothing left behind."""

import asyncio
from typing import Any

import pytest

from shared.errors import BadRequest, LaneBroken
from shared.kv.frame import Frame
from shared.pool.lanes.linked import TOGETHER_BYTES, LinkedLane
from shared.proto import prfaas_pb2 as pb
from tests.support.lanes import linked, plain, sealed
from tests.support.waiting import LIMIT_S, until

MIB = 1 << 20


class Written:
    """The messages of a publication."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def __call__(self, message: Any) -> None:
        self.messages.append(message)


async def test_a_writer_goes_on_while_as_many_batches_are_under_way_as_there_are_connections() -> None:
    frames = [sealed(number, 32 * MIB) for number in range(1, 4)]
    write = Written()
    async with linked(2) as ends:
        publishing = LinkedLane(ends.near, verifies=False).publishing()
        with ends.far.incoming(publishing.use.stream) as incoming:
            await asyncio.wait_for(publishing.send([], write), LIMIT_S)
            assert ends.near.num_bytes_sent == 0
            for frame in frames:
                await asyncio.wait_for(publishing.send([frame], write), LIMIT_S)
            received = [(await asyncio.wait_for(anext(incoming), LIMIT_S)).frames[0] for _ in frames]
            assert not write.messages
            await publishing.finish(write)
        publishing.end()
        assert sorted(plain(received)) == sorted(frames)
        assert write.messages == [pb.PublishRequest(sent=pb.LaneCount(num_entries=3))]
        ends.far_slots.free_all(received)


async def test_what_is_sent_while_the_connections_are_busy_goes_together() -> None:
    large, small = sealed(1, 32 * MIB), [sealed(number, 1 * MIB) for number in range(2, 8)]
    write = Written()
    async with linked(1) as ends:
        publishing = LinkedLane(ends.near, verifies=False).publishing()
        with ends.far.incoming(publishing.use.stream) as incoming:
            for frame in [large, *small]:
                await asyncio.wait_for(publishing.send([frame], write), LIMIT_S)
            batches: list[list[Frame]] = []
            while sum(map(len, batches)) < 7:
                batches.append((await asyncio.wait_for(anext(incoming), LIMIT_S)).frames)
            await publishing.finish(write)
        publishing.end()
        assert len(batches) < 7
        assert max(sum(len(frame.payload) for frame in batch) for batch in batches[1:]) <= TOGETHER_BYTES
        received = [frame for batch in batches for frame in batch]
        assert plain(received) == [large, *small]
        assert write.messages[0].sent.num_entries == 7
        ends.far_slots.free_all(received)


async def test_a_batch_that_failed_is_said_at_the_end_at_the_latest() -> None:
    async with linked(1) as ends:
        publishing = LinkedLane(ends.near, verifies=False).publishing()
        with ends.far.incoming(publishing.use.stream):
            await publishing.send([sealed(1, 64 * MIB)], Written())
            ends.near.shut("cut")
            with pytest.raises(LaneBroken):
                await asyncio.wait_for(publishing.finish(Written()), LIMIT_S)
        publishing.end()


async def test_after_its_end_nothing_waits_to_be_sent() -> None:
    async with linked(1) as ends:
        publishing = LinkedLane(ends.near, verifies=False).publishing()
        other = LinkedLane(ends.near, verifies=False).publishing()
        with ends.far.incoming(publishing.use.stream):
            await publishing.send([sealed(1, 64 * MIB)], Written())
            await until(lambda: not ends.near.num_waiting)
            await other.send([sealed(2, 1000)], Written())
            other.end()
            assert not ends.near.num_waiting
            publishing.end()
            other.end()


async def test_an_entry_that_no_batch_may_hold_is_said_to_its_writer() -> None:
    large, empty = sealed(1, 32 * MIB), sealed(2, 8)._replace(payload=b"")
    async with linked(1) as ends:
        publishing = LinkedLane(ends.near, verifies=False).publishing()
        with ends.far.incoming(publishing.use.stream) as incoming:
            await publishing.send([large], Written())
            await publishing.send([empty], Written())
            received = (await asyncio.wait_for(anext(incoming), LIMIT_S)).frames
            with pytest.raises(BadRequest):
                await asyncio.wait_for(publishing.finish(Written()), LIMIT_S)
        publishing.end()
        ends.far_slots.free_all(received)
