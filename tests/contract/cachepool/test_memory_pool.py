"""What a pool promises to those who read and write it: the same of the pool in memory and of a node over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext

import pytest

from shared.deadline import Deadline
from shared.errors import BadRequest, CorruptFrame, DeadlineExceeded
from shared.kv.codec import Codec
from shared.kv.frame import Frame, seal
from shared.kv.layout import KvLayout, LayerSpec
from shared.pool.memory import MemoryPool
from shared.pool.nodes import Pool
from shared.rpc.client import Channels
from tests.support.pools import CHAIN, Fetching, entries, frames_of, serving, soon
from tests.support.samples import ALL, LAYOUT, wanting

LANES = ("grpc",)

SHORT_S = 0.3


@pytest.fixture(params=["memory", "node"])
async def pool(request: pytest.FixtureRequest) -> AsyncIterator[Pool]:
    """A pool; at the end no grant is held in it."""
    if request.param == "memory":
        memory = MemoryPool()
        yield memory
        assert memory.idle
    else:
        async with Channels() as channels, serving(channels) as node:
            yield node.client


async def fill(pool: Pool, num_blocks: int = len(CHAIN), layers: int = ALL) -> None:
    async with pool.publish(soon()) as publication:
        grant = await publication.open(LAYOUT, wanting(CHAIN[:num_blocks], layers))
        assert grant.granted == [layers] * num_blocks
        await publication.send(frames_of(CHAIN[:num_blocks], layers))


async def offer(pool: Pool, *frames: Frame) -> None:
    """Send frames on a publication of the first block."""
    async with pool.publish(soon()) as publication:
        await publication.open(LAYOUT, wanting(CHAIN[:1]))
        await publication.send(frames)


async def test_what_was_published_comes_whole_and_lowest_layer_first(pool: Pool) -> None:
    await fill(pool)
    fetching = await Fetching(pool, wanting(CHAIN)).done()
    assert fetching.got == entries(CHAIN)


async def test_readers_get_the_layers_they_ask_for(pool: Pool) -> None:
    await fill(pool)
    fetching = await Fetching(pool, wanting(CHAIN[1:], 0b110)).done()
    assert fetching.got == entries(CHAIN[1:], 0b110)


async def test_the_first_writer_wins_and_the_second_learns_what_is_there(pool: Pool) -> None:
    await fill(pool, 1)
    async with pool.publish(soon()) as first, pool.publish(soon()) as second:
        assert await first.open(LAYOUT, wanting(CHAIN[:2])) == ([0, ALL], [ALL, 0])
        assert await second.open(LAYOUT, wanting(CHAIN[:3])) == ([0, 0, ALL], [ALL, 0, 0])
        assert await first.open(LAYOUT, wanting(CHAIN[1:2])) == ([0], [0]), "it is being written, by us"
        await first.send(frames_of(CHAIN[1:2]))
        await second.send(frames_of(CHAIN[2:3]))
    fetching = await Fetching(pool, wanting(CHAIN[:3]), wait_s=0).done()
    assert sorted(fetching.got) == sorted(entries(CHAIN[:3]))


async def test_a_writer_may_ask_for_more_and_name_what_its_blocks_follow(pool: Pool) -> None:
    async with pool.publish(soon()) as publication:
        assert await publication.open(LAYOUT, wanting(CHAIN[:1], 0b001)) == ([0b001], [0])
        await publication.send(frames_of(CHAIN[:1], 0b001))
        more = [*wanting(CHAIN[:1], 0), *wanting(CHAIN[1:2])]
        assert await publication.open(LAYOUT, more) == ([0, ALL], [0, 0])
        await publication.send(frames_of(CHAIN[1:2]))
    assert len((await Fetching(pool, wanting(CHAIN[:2]), wait_s=0).done()).got) == 4


async def test_a_reader_that_waits_gets_a_layer_before_the_next_one_is_written(pool: Pool) -> None:
    async with pool.publish(soon()) as publication:
        await publication.open(LAYOUT, wanting(CHAIN))
        fetching = Fetching(pool, wanting(CHAIN))
        for layer in range(LAYOUT.num_layers):
            await publication.send(frames_of(CHAIN, 1 << layer))
            await fetching.until_got(len(CHAIN) * (layer + 1))
    assert (await fetching.done()).got == entries(CHAIN)


async def test_a_reader_that_does_not_wait_is_told_what_is_missing(pool: Pool) -> None:
    await fill(pool, 1)
    fetching = await Fetching(pool, wanting(CHAIN[:2]), wait_s=0).done()
    assert (fetching.got, fetching.missing) == (entries(CHAIN[:1]), set(entries(CHAIN[1:2])))


async def test_what_has_a_writer_is_waited_for_however_long_it_takes(pool: Pool) -> None:
    async with pool.publish(soon()) as publication:
        await publication.open(LAYOUT, wanting(CHAIN[:1]))
        fetching = Fetching(pool, wanting(CHAIN[:2]), wait_s=0)
        await fetching.until_missing(len(entries(CHAIN[1:2])))
        await publication.send(frames_of(CHAIN[:1]))
    assert (await fetching.done()).got == entries(CHAIN[:1])
    assert fetching.missing == set(entries(CHAIN[1:2]))


@pytest.mark.parametrize("fails", [False, True])
async def test_what_a_writer_has_not_sent_is_the_next_ones_when_it_ends(pool: Pool, fails: bool) -> None:
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        async with pool.publish(soon()) as publication:
            await publication.open(LAYOUT, wanting(CHAIN[:1]))
            await publication.send(frames_of(CHAIN[:1], 0b001))
            fetching = Fetching(pool, wanting(CHAIN[:1]))
            await fetching.until_got(1)
            if fails:
                raise ZeroDivisionError
    while True:  # a node learns a moment later that a stream has broken
        async with pool.publish(soon()) as publication:
            grant = await publication.open(LAYOUT, wanting(CHAIN[:1]))
            if grant.granted == [0b110]:
                await publication.send(frames_of(CHAIN[:1], 0b110))
                break
        assert grant == ([0], [0b001])
    assert (await fetching.done()).got == entries(CHAIN[:1])


async def test_patience_counts_from_when_the_last_writer_left(pool: Pool) -> None:
    loop = asyncio.get_running_loop()
    async with pool.publish(soon()) as publication:
        await publication.open(LAYOUT, wanting(CHAIN[:1]))
        fetching = Fetching(pool, wanting([*CHAIN[:1], CHAIN[1]]), wait_s=SHORT_S)
        await fetching.until_missing(len(entries(CHAIN[1:2])))
        left_at = loop.time()
    await fetching.done()
    assert loop.time() - left_at >= SHORT_S * 0.9
    assert fetching.missing == set(entries(CHAIN[:2]))


async def test_a_reader_does_not_outlast_its_deadline(pool: Pool) -> None:
    async with pool.publish(soon()) as publication:
        await publication.open(LAYOUT, wanting(CHAIN[:1]))
        with pytest.raises(DeadlineExceeded):
            async for _ in pool.fetch(LAYOUT, wanting(CHAIN[:1]), (), 60.0, Deadline.after(SHORT_S)):
                pass


async def test_a_frame_that_was_not_granted_fails_its_publication(pool: Pool) -> None:
    with pytest.raises(BadRequest, match="not granted"):
        await offer(pool, *frames_of(CHAIN[1:2]))
    fetching = await Fetching(pool, wanting(CHAIN[1:2]), wait_s=0).done()
    assert fetching.missing == set(entries(CHAIN[1:2]))


@pytest.mark.parametrize(
    "frame",
    [
        frames_of(CHAIN[:1], 1)[0]._replace(checksum=1),
        seal(CHAIN[0], 0, bytes(LAYOUT.entry_bytes(0) + 2), Codec.RAW),
    ],
    ids=["checksum", "size"],
)
async def test_what_cannot_be_an_entry_fails_its_publication(pool: Pool, frame: Frame) -> None:
    with pytest.raises(CorruptFrame):
        await offer(pool, frame)
    assert (await Fetching(pool, wanting(CHAIN[:1], 1), wait_s=0).done()).got == []


async def test_a_block_has_one_layout(pool: Pool) -> None:
    await fill(pool, 1)
    other = KvLayout((LayerSpec(None, 1, 8),), "float32", block_tokens=4)
    with pytest.raises(BadRequest, match="another KV layout"):
        async for _ in pool.fetch(other, wanting(CHAIN[:1], 1), (), 0.0, soon()):
            pass
    with pytest.raises(BadRequest, match="another KV layout"):
        async with pool.publish(soon()) as publication:
            await publication.open(other, wanting(CHAIN[:1], 1))
