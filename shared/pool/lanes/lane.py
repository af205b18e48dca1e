"""What the client of a pool asks of a lane. Nothing outside this package knows which one carries."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame
from shared.pool.wire import Unreadable
from shared.proto import prfaas_pb2 as pb
from shared.rpc.convert import entries_from_messages


class Arrived(NamedTuple):
    """What one message of a fetch brought."""

    frames: list[Frame]
    missing: list[BlockEntries]  # will not come on this stream
    corrupt: Sequence[BlockEntries] = ()  # came, and were not what their source sealed
    is_verified: bool = False  # the frames' checksums were found right on their way
    busy_s: float | None = None  # time in which their lane was receiving, since the last that came; None: unknown


Replies = AsyncIterator["pb.FetchReply | list[Frame] | Unreadable"]
Write = Callable[["pb.PublishRequest | Sequence[Frame]"], Awaitable[None]]
AskRoom = Callable[[pb.RoomRequest], Awaitable[pb.Room]]


class FetchLane(Protocol):
    """The payloads of one Fetch stream."""

    @property
    def use(self) -> pb.LaneUse | None:
        """What the request says; None: payloads come in the messages."""

    def arrivals(self, replies: Replies) -> AsyncGenerator[Arrived, None]:
        """Yield what comes, by message or beside them. Raises `LaneBroken`, `CorruptFrame`, and what `replies` raise.

        What was yielded is the caller's until `end`.
        """

    def end(self) -> None:
        """Say that nothing of the stream is read any more. Idempotent."""


class PublishLane(Protocol):
    """The payloads of one Publish stream."""

    @property
    def use(self) -> pb.LaneUse | None:
        """What `open` says; None: payloads go in the messages."""

    async def room(self, ask: AskRoom, num_slots: int, slot_bytes: int, num_to_come: int) -> list[memoryview]:
        """Return slots of the pool's memory to write payloads into, as many as can be had.

        So many entries the writer has to send in all, `num_to_come`: slots for some may be asked for ahead.
        """

    async def send(self, frames: Sequence[Frame], write: Write) -> None:
        """Hand frames over. Those whose payload is a slot of `room`, that very object, are placed."""

    async def finish(self, write: Write) -> None:
        """Say that nothing more comes."""

    def end(self) -> None:
        """Say that nothing of the stream is written any more. Idempotent."""


class Lane(Protocol):
    """One process's way to one pool node."""

    @property
    def name(self) -> str: ...

    @property
    def is_broken(self) -> bool: ...

    @property
    def receiving_s(self) -> float:
        """Seconds for which the lane has been busy with what has not come yet, as far as it knows."""

    def fetching(self) -> FetchLane: ...

    def publishing(self) -> PublishLane: ...

    async def close(self) -> None: ...


def arrived(reply: "pb.FetchReply | list[Frame] | Unreadable") -> Arrived:
    """Return what a message brought itself. Raises `CorruptFrame`."""
    match reply:
        case list():
            return Arrived(reply, [])
        case Unreadable():
            raise reply.error
        case _:
            return Arrived([], entries_from_messages(reply.missing.blocks))
