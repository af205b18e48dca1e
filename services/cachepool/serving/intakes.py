"""How the payloads of one Publish stream come, where it is not in its messages: into slots of a room, or on a link."""

import asyncio
from array import array
from collections.abc import Callable
from contextlib import ExitStack

from shared.errors import BadRequest, LaneBroken, Overloaded, PrfaasError
from shared.kv.frame import MAX_RAW_BYTES, Frame
from shared.lanes.records import unpack_records
from shared.lanes.shared_memory.client import AttachedClient
from shared.lanes.slabs import slot_bytes
from shared.lanes.slots import SlotMemory
from shared.lanes.sockets.batch import Received
from shared.lanes.sockets.link import SocketLink
from shared.proto import prfaas_pb2 as pb

MAX_SLOTS = 4096
"""What one question for room is answered with at most: each slot is a view here, and a place in the answer."""


class RoomBudget:
    """How many bytes of slots writers have that have not placed anything in them yet.

    All who have some have equal shares, and leave one for who comes next.
    """

    def __init__(self, limit_bytes: int, writer_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._writer_bytes = writer_bytes
        self._given_bytes = 0
        self._held_bytes: dict[object, int] = {}  # by writer, never 0

    def take(self, writer: object, num_slots: int, num_bytes: int) -> int:
        """Return how many slots of `num_bytes` a writer gets, `MAX_SLOTS` at most. They count until `give_back`."""
        held = self._held_bytes.get(writer, 0)
        share = self._limit_bytes // (1 + len(self._held_bytes.keys() | {writer}))
        left = min(self._limit_bytes - self._given_bytes, min(share, self._writer_bytes) - held)
        num = max(0, min(num_slots, MAX_SLOTS, left // num_bytes))
        if num:
            self._given_bytes += num * num_bytes
            self._held_bytes[writer] = held + num * num_bytes
        return num

    def give_back(self, writer: object, num_bytes: int | None = None) -> None:
        """Count so much of a writer's slots no more; None: all of them."""
        held = self._held_bytes.pop(writer, 0)
        given_back = held if num_bytes is None else num_bytes
        self._given_bytes -= given_back
        if held > given_back:
            self._held_bytes[writer] = held - given_back


class MappedIntake:
    """The room of one writer on this host: slots that are its own until it has placed an entry in them, or is gone."""

    def __init__(self, memory: SlotMemory, budget: RoomBudget, client: AttachedClient, stream: int) -> None:
        self._memory = memory
        self._budget = budget
        self._client = client
        self._stream = stream
        self._room: dict[int, memoryview] = {}  # by place

    def room(self, request: pb.RoomRequest) -> pb.Room:
        """Give slots, none where memory has none left. The attached process holds them: they are nobody else's before
        it has let go of the stream. Raises `BadRequest`, `LaneBroken`.
        """
        if not 0 < request.slot_bytes <= MAX_RAW_BYTES:
            raise BadRequest(f"a slot has 1 to {MAX_RAW_BYTES} bytes")
        num_bytes = slot_bytes(request.slot_bytes)
        num_slots = self._budget.take(self, request.num_slots, num_bytes)
        try:
            views = self._memory.take_all([request.slot_bytes] * num_slots)
        except Overloaded:
            self._budget.give_back(self, num_slots * num_bytes)
            return pb.Room()
        self._client.hold(self._stream, views)
        places = self._memory.places(views)
        self._room |= zip(places, views, strict=True)
        return pb.Room(places=array("Q", places).tobytes())

    def placed(self, batch: pb.RecordBatch) -> list[Frame]:
        """Return the entries that the writer says it has written, not verified. Raises `BadRequest`, `CorruptFrame`."""
        frames: list[Frame] = []
        placed_bytes = last_bytes = last_slot_bytes = 0
        pop, make = self._room.pop, tuple.__new__
        try:
            for key, checksum, place, num_bytes, raw_bytes, layer, codec, fidelity in unpack_records(batch.records):
                view = pop(place, None)
                if view is None:
                    raise BadRequest(f"no slot at {place} is this writer's")
                if len(view) != last_bytes:  # most batches are of one size
                    last_bytes = len(view)
                    last_slot_bytes = slot_bytes(last_bytes)
                placed_bytes += last_slot_bytes
                if last_bytes != num_bytes:
                    raise BadRequest(f"the slot at {place} is of {last_bytes} bytes, not of {num_bytes}")
                frames.append(make(Frame, (key, layer, codec, fidelity, raw_bytes, view, checksum)))
        finally:
            self._budget.give_back(self, placed_bytes)
        return frames

    def close(self) -> None:
        """End the room; idempotent."""
        self._room.clear()
        self._budget.give_back(self)


class LinkedIntake:
    """A writer's batches on a link, ingested as they come."""

    def __init__(
        self, link: SocketLink, stream: int, ingest: Callable[[Received], None], on_failed: Callable[[], None]
    ) -> None:
        """`on_failed`: nothing more comes, `error` says why. The writer may not ask for long."""
        self.error: PrfaasError | None = None
        self._on_failed = on_failed
        self._open = ExitStack()
        self._batches = self._open.enter_context(link.incoming(stream))
        self._ingest = ingest
        self._num_received = 0
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="batches of a writer")

    async def until(self, num_entries: int) -> None:
        """Wait until so many entries have come. Raises `LaneBroken`, and what `ingest` raised."""
        while self._num_received < num_entries:
            if self._task.done():
                self._task.result()
                raise self.error or LaneBroken("the writer's link was closed")
            self._changed.clear()
            await self._changed.wait()

    def close(self) -> None:
        """Take nothing more; idempotent. Does not wait: a call that ends may be cancelled again at any `await`."""
        self._task.cancel()
        self._open.close()

    async def _run(self) -> None:
        try:
            async for received in self._batches:
                self._num_received += received.num_entries
                self._ingest(received)
                self._changed.set()
                del received  # or, when this is cancelled, its traceback would hold slots until it is collected
        except PrfaasError as error:
            self.error = error.with_traceback(None)  # frames in it hold what could not be ingested
            self._on_failed()
        finally:
            self._changed.set()
