"""Payloads in the pool's own memory, which this process has mapped: messages only say where they lie."""

from array import array
from collections import deque
from collections.abc import AsyncGenerator, Sequence

from shared.kv.frame import Frame
from shared.lanes.records import pack_records, unpack_records
from shared.lanes.shared_memory.attachment import Attachment
from shared.pool.lanes.lane import Arrived, AskRoom, Replies, Write, arrived
from shared.proto import prfaas_pb2 as pb

AHEAD_BYTES = 64 * 1024 * 1024
"""What a writer asks room for at once, if it has so much to send: a question costs as much as some MB of copying."""


class MappedLane:
    """A `Lane` over one attachment to a pool on this host."""

    name = "shared_memory"
    receiving_s = 0.0

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment

    @property
    def is_broken(self) -> bool:
        return self._attachment.broken

    def fetching(self) -> "MappedFetch":
        return MappedFetch(self._attachment)

    def publishing(self) -> "MappedPublish":
        return MappedPublish(self._attachment)

    async def close(self) -> None:
        await self._attachment.close()


class _MappedStream:
    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._stream = attachment.new_stream()
        self._has_ended = False

    @property
    def use(self) -> pb.LaneUse:
        return pb.LaneUse(kind=pb.LANE_KIND_SHARED_MEMORY, attachment=self._attachment.number, stream=self._stream)

    def end(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._attachment.let_go(self._stream)


class MappedFetch(_MappedStream):
    """A `FetchLane`: payloads are views of the mapping, which the pool leaves alone until `end`."""

    async def arrivals(self, replies: Replies) -> AsyncGenerator[Arrived, None]:
        view = self._attachment.view
        async for reply in replies:
            if isinstance(reply, pb.FetchReply) and reply.HasField("placed"):
                records = unpack_records(reply.placed.records)
                yield Arrived([record.frame(view(record.place, record.num_bytes)) for record in records], [])
            else:
                yield arrived(reply)


class MappedPublish(_MappedStream):
    """A `PublishLane`: payloads are written into slots of the writer's room, and announced."""

    def __init__(self, attachment: Attachment) -> None:
        super().__init__(attachment)
        self._spare: dict[int, deque[int]] = {}  # places that nobody has been given yet, by the size of their slots
        self._room: dict[int, tuple[memoryview, int]] = {}  # by the id of the slot's view: the view, and its place

    async def room(self, ask: AskRoom, num_slots: int, slot_bytes: int, num_to_come: int) -> list[memoryview]:
        spare = self._spare.setdefault(slot_bytes, deque())
        if len(spare) < num_slots:
            num_wanted = max(num_slots, min(num_to_come, AHEAD_BYTES // slot_bytes)) - len(spare)
            spare.extend(array("Q", (await ask(pb.RoomRequest(num_slots=num_wanted, slot_bytes=slot_bytes))).places))
        places = [spare.popleft() for _ in range(min(num_slots, len(spare)))]
        slots = [self._attachment.slot(place, slot_bytes) for place in places]
        self._room |= {id(slot): (slot, place) for slot, place in zip(slots, places, strict=True)}
        return slots

    async def send(self, frames: Sequence[Frame], write: Write) -> None:
        placed: list[Frame] = []
        places: list[int] = []
        others: list[Frame] = []
        for frame in frames:
            if (found := self._room.pop(id(frame.payload), None)) is None:
                others.append(frame)
            else:
                placed.append(frame)
                places.append(found[1])
        if placed:
            await write(pb.PublishRequest(placed=pb.RecordBatch(records=pack_records(placed, places))))
        if others:
            await write(others)

    async def finish(self, write: Write) -> None:
        pass
