"""A publisher of pages, and a pool that takes what it sends when it is let."""

import asyncio
from typing import cast

from shared.engine.publish import PagePublisher
from shared.engine.stage import HostStager, Stager
from shared.engine.thread import WorkThread
from shared.engine.transfer import PageTransfer, TransferMetrics
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.frame import Frame
from shared.metrics import Metrics
from shared.pool.publication import Publication
from tests.support.tiny import tiny_model

NUM_BLOCKS = 6
KEYS = [BlockKey(bytes([i]) * 32) for i in range(NUM_BLOCKS)]


class SlowPool:
    """Takes a message each time that it is let."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.messages: list[int] = []  # how many frames each had
        self.let = asyncio.Semaphore(0)
        self.has_room_for: set[BlockKey] = set()
        self.asked: list[int] = []  # how much room, each time
        self.slots: list[memoryview] = []

    async def room(self, keys: list[BlockKey], num_bytes: int) -> list[memoryview | None]:
        self.asked.append(len(keys))
        room = [memoryview(bytearray(num_bytes)) if key in self.has_room_for else None for key in keys]
        self.slots += [slot for slot in room if slot is not None]
        return room

    async def send(self, frames: list[Frame]) -> None:
        await self.let.acquire()
        self.frames += frames
        self.messages.append(len(frames))

    def placed(self) -> list[Frame]:
        """Return the frames whose payloads lie in the room that was given."""
        return [frame for frame in self.frames if any(frame.payload is slot for slot in self.slots)]


class PublisherBench:
    """A publisher of pages with known content, and the pool that it sends to."""

    def __init__(self, codec: Codec = Codec.RAW) -> None:
        model = tiny_model("llama")
        self.kv, self.pool, self.copier = model.kv, SlowPool(), WorkThread("copier")
        reservation = model.kv.reserve([], NUM_BLOCKS * 64)
        assert reservation is not None
        self.reservation = reservation
        for layer in range(4):
            for block in range(NUM_BLOCKS):
                k, v = self.kv.block(layer, reservation, block)
                k.fill_(layer * 100 + block)
                v.fill_(-layer * 100 - block)
        self.num_woken = 0
        self.codec = codec
        self.publisher = self.made(HostStager())

    def made(self, stager: Stager) -> PagePublisher:
        self.metrics = Metrics()
        transfer = self.transfer = PageTransfer(self.kv, self.copier, TransferMetrics(self.metrics), stager)
        publication = cast("Publication", self.pool)
        return PagePublisher(publication, transfer, self.reservation, KEYS, self.codec, on_sent=self.woken)

    def woken(self) -> None:
        self.num_woken += 1


def granted(publisher: PagePublisher, *layers: int) -> None:
    """Let the pool grant layers of the leading blocks."""
    for block, mask in enumerate(layers):
        publisher.grant(block, mask)
