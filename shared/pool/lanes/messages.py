"""Payloads in the messages of the call: the lane that is always there."""

from collections.abc import AsyncGenerator, Sequence

from shared.kv.frame import Frame
from shared.pool.lanes.lane import Arrived, AskRoom, Replies, Write, arrived


class MessageLane:
    """A `Lane`, and both of its streams: nothing has to be kept."""

    name = "grpc"
    is_broken = False
    receiving_s = 0.0
    use = None

    def fetching(self) -> "MessageLane":
        return self

    def publishing(self) -> "MessageLane":
        return self

    async def arrivals(self, replies: Replies) -> AsyncGenerator[Arrived, None]:
        async for reply in replies:
            yield arrived(reply)

    async def room(self, ask: AskRoom, num_slots: int, slot_bytes: int, num_to_come: int) -> list[memoryview]:
        return []

    async def send(self, frames: Sequence[Frame], write: Write) -> None:
        await write(frames)

    async def finish(self, write: Write) -> None:
        pass

    def end(self) -> None:
        pass

    async def close(self) -> None:
        pass


IN_MESSAGES = MessageLane()
