"""Claims on a prompt's blocks: what nobody has is ours to send, and what others leave unfinished."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.prefill.claims import ASK_EVERY_S, Claims
from shared.deadline import Deadline
from shared.engine.publish import PagePublisher
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import seal
from shared.kv.layout import KvLayout
from shared.metrics import Metrics
from shared.pool.memory import MemoryPool, MemoryPublication
from tests.support.parts import transfer_of
from tests.support.samples import keys
from tests.support.tiny import tiny_model
from tests.support.waiting import LIMIT_S

KEYS = keys("claimed", 4)
ALL = 0b1111


@dataclass
class Bench:
    layout: KvLayout
    pool: MemoryPool
    claims: Claims
    publisher: PagePublisher

    @asynccontextmanager
    async def other_writer(self, block: int, layers: int = ALL) -> AsyncIterator[MemoryPublication]:
        async with self.pool.publish(Deadline.after(LIMIT_S)) as other:
            await other.open(self.layout, [BlockEntries(KEYS[block], layers)])
            yield other

    async def store(self, block: int, layers: list[int]) -> None:
        async with self.other_writer(block) as other:
            entries = [(layer, bytes(self.layout.entry_bytes(layer))) for layer in layers]
            await other.send([seal(KEYS[block], layer, raw, Codec.RAW) for layer, raw in entries])

    @property
    def to_send(self) -> list[int]:
        return list(self.publisher.outstanding)


@asynccontextmanager
async def bench(name: str = "llama") -> AsyncIterator[Bench]:
    model, pool = tiny_model(name, 32), MemoryPool()
    reservation = model.kv.reserve([], len(KEYS) * 64)
    assert reservation is not None
    with transfer_of(model, Metrics()) as transfer:
        async with pool.publish(Deadline.after(LIMIT_S)) as publication:
            publisher = PagePublisher(publication, transfer, reservation, KEYS, Codec.RAW)
            yield Bench(model.layout, pool, Claims(publication, model.layout, KEYS, publisher), publisher)
    assert pool.idle


async def test_what_nobody_has_or_writes_is_ours() -> None:
    async with bench() as b:
        await b.store(0, [0, 1, 2, 3])
        await b.store(1, [0])
        async with b.other_writer(2, 0b0011):
            await b.claims.take([0, 1, 2, 3])
        assert b.to_send == [0, 0b1110, 0b1100, ALL]


async def test_blocks_are_claimed_in_their_places_wherever_they_begin() -> None:
    async with bench() as b:
        await b.store(3, [3])
        await b.claims.take([])
        assert b.to_send == [0, 0, 0, 0]
        await b.claims.take([1, 3])
        assert b.to_send == [0, ALL, 0, 0b0111]
        await b.claims.take([0, 1])
        assert b.to_send == [ALL, ALL, 0, 0b0111], "asking again takes nothing away"


async def test_what_the_pages_lack_is_not_sent() -> None:
    async with bench() as b:
        await b.claims.take([0, 1, 2])
        b.claims.limit_to([0b0001, 0, ALL, ALL], 2)
        assert b.to_send == [0b0001, 0, ALL, 0]


async def test_what_a_writer_left_unfinished_is_taken_over_as_far_as_the_pages_have_it() -> None:
    async with bench() as b:
        async with b.other_writer(0), b.other_writer(1) as second, b.other_writer(2):
            await b.claims.take([0, 1, 2, 3])
            assert b.to_send == [0, 0, 0, ALL]
            raw = bytes(b.layout.entry_bytes(0))
            await second.send([seal(KEYS[1], layer, raw, Codec.RAW) for layer in range(4)])
        await b.claims.take_over([0b0111, ALL, 0, ALL])
        assert b.to_send == [0b0111, 0, 0, ALL]


async def test_a_writer_that_is_still_at_it_keeps_its_blocks() -> None:
    async with bench() as b, b.other_writer(0):
        await b.claims.take([0, 1])
        await b.claims.take_over([ALL, ALL, 0, 0])
        assert b.to_send == [0, ALL, 0, 0]


async def test_a_prompt_that_others_write_is_settled_when_they_have_stored_it() -> None:
    async with bench() as b:
        async with b.other_writer(1) as other:
            await b.claims.take([1])
            settled = asyncio.create_task(b.claims.settled())
            entries = [(layer, bytes(b.layout.entry_bytes(layer))) for layer in range(4)]
            await other.send([seal(KEYS[1], layer, raw, Codec.RAW) for layer, raw in entries])
        assert not await asyncio.wait_for(settled, LIMIT_S)
        assert b.to_send == [0, 0, 0, 0]
        assert not await b.claims.settled(), "nothing to wait for"


async def test_what_another_writer_leaves_behind_is_ours() -> None:
    async with bench() as b:
        async with b.other_writer(2):
            await b.claims.take([2])
            settled = asyncio.create_task(b.claims.settled())
            await asyncio.sleep(2 * ASK_EVERY_S)
            assert not settled.done()
        assert await asyncio.wait_for(settled, LIMIT_S)
        assert b.to_send == [0, 0, ALL, 0]


async def test_entries_that_are_ours_already_are_waited_for_by_nobody() -> None:
    async with bench() as b:
        await b.claims.take([0])
        await b.claims.take([0])
        assert not await b.claims.settled()


async def test_entries_that_no_resume_needs_are_waited_for_by_nobody() -> None:
    """Or two workers, who each hold some of them, would wait for one another."""
    async with bench("gemma3") as b:
        behind_the_window = b.layout.all_layers & ~b.layout.needed_layers(0, len(KEYS))
        assert behind_the_window
        async with b.other_writer(0, behind_the_window):
            await b.claims.take([0])
            assert not await asyncio.wait_for(b.claims.settled(), LIMIT_S)
