"""Processes that are killed or stand still, at each step of what they do with a pool, on each lane."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import psutil
import pytest

from shared.errors import PrfaasError
from shared.kv.frame import Frame, open_frame
from shared.lanes.settings import LaneName
from shared.lanes.slots import SlotMemory
from shared.pool.client import PoolClient
from shared.pool.lanes.chosen import PoolLanes
from shared.rpc.client import Channels
from tests.support.large import LARGE, LONG, Reading, large_entries, large_frames, placed_or_sent, write_all
from tests.support.ledger import Ledger, held
from tests.support.pool_peer import PoolPeer
from tests.support.pools import Running, lanes_in_use, soon
from tests.support.samples import frame, keys, wanting
from tests.support.waiting import LIMIT_S, until

pytestmark = pytest.mark.suite

HALF = len(LONG) // 2
WRITER_STEPS = [["attach"], ["open"], ["open", "room"], ["open", "room", "send"]]
OTHERS = keys("others", 700)
"""Blocks that fill the pool: whatever may go goes."""


@pytest.fixture
async def processes() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def client_of(west: Running, lane: LaneName, processes: AsyncExitStack, spare_bytes: int = 0) -> PoolPeer:
    peer = await PoolPeer.start("client", west.address, lane, str(spare_bytes))
    processes.push_async_callback(peer.kill)
    return peer


async def write_what_lacks(west: Running) -> None:
    async with west.client.publish(soon()) as publication:
        grant = await publication.open(LARGE, wanting(LONG, LARGE.all_layers))
        masks = dict(zip(LONG, grant.granted, strict=True))
        lacking = [sent for sent in large_frames(LONG) if masks[sent.key] >> sent.layer & 1]
        await placed_or_sent(publication, lacking)


@pytest.mark.parametrize("steps", WRITER_STEPS, ids=lambda steps: steps[-1])
async def test_a_writer_that_is_killed_leaves_nothing_but_what_it_wrote(
    west: Running, lane: LaneName, steps: list[str], processes: AsyncExitStack
) -> None:
    ledger = await Ledger.of(west)
    peer = await client_of(west, lane, processes)
    answers = [await peer.tell(step) for step in steps]
    expected = [{"attach": lane, "open": "60", "send": "30"}.get(step) for step in steps]
    if "room" in steps:
        expected[1] = "30" if lane == "shared_memory" else "0"
    assert answers == expected
    if "send" in steps:
        await until(lambda: west.count("stored_entries") == len(LONG))
    await peer.kill()
    await ledger.balanced()
    assert west.count("stored_entries") == (len(LONG) if "send" in steps else 0)
    await write_what_lacks(west)
    assert (await Reading(west.client, LONG).run()).has_all
    await ledger.balanced()


async def test_a_reader_that_is_killed_leaves_nothing(west: Running, lane: LaneName, processes: AsyncExitStack) -> None:
    await write_all(west.client, LONG[:HALF])
    ledger = await Ledger.of(west)
    peer = await client_of(west, lane, processes)
    assert int(await peer.tell("fetch")) > 0
    if lane == "shared_memory":
        assert held(west).num_held > 0
    await peer.kill()
    await ledger.balanced()


async def test_a_writer_that_stands_still_loses_its_lease_and_harms_nobody_later(
    west: Running, lane: LaneName, processes: AsyncExitStack
) -> None:
    ledger = await Ledger.of(west)
    peer = await client_of(west, lane, processes)
    for step in ("open", "room"):
        await peer.tell(step)
    peer.process.send_signal(signal.SIGSTOP)
    await until(lambda: west.count("writers_open") == 0)
    await write_what_lacks(west)
    await write_all(west.client, OTHERS)  # in all slots that may be used again
    peer.process.send_signal(signal.SIGCONT)
    await peer.tell("send")  # into what it was given, and to a call that has ended
    for name in OTHERS:
        for came in west.pool.store.frames(wanting([name], LARGE.all_layers)[0]):
            assert open_frame(came) == frame(name, came.layer, LARGE).payload
    await peer.kill()
    await ledger.balanced()


async def test_a_reader_that_stands_still_keeps_what_it_was_given(
    west: Running, lane: LaneName, processes: AsyncExitStack
) -> None:
    await write_all(west.client, LONG[:HALF])
    ledger = await Ledger.of(west)
    peer = await client_of(west, lane, processes)
    assert int(await peer.tell("fetch")) > 0
    peer.process.send_signal(signal.SIGSTOP)
    store = west.pool.store
    for block in wanting(LONG[:HALF], LARGE.all_layers):
        assert all(map(store.discard, store.frames(block)))  # its lease keeps only what is good
    await write_all(west.client, OTHERS)
    peer.process.send_signal(signal.SIGCONT)
    assert await peer.tell("check") == "intact"
    await peer.kill()
    await ledger.balanced()


@pytest.mark.parametrize("lane", ["shared_memory", "socket"], indirect=True)
async def test_a_process_without_memory_for_a_lane_speaks_in_messages(
    west: Running, lane: LaneName, processes: AsyncExitStack
) -> None:
    """Its address space has no room for the pool's memory, or for threads and their stacks."""
    await write_all(west.client, LONG[:HALF])
    ledger = await Ledger.of(west)
    peer = await client_of(west, lane, processes, spare_bytes=160 << 20)
    if lane == "shared_memory":
        assert await peer.tell("attach") == "grpc"
    assert int(await peer.tell("fetch")) > 0
    assert await peer.tell("check") == "intact"
    await peer.kill()
    await ledger.balanced()


async def pool_of(lane: LaneName, processes: AsyncExitStack) -> tuple[PoolPeer, PoolClient]:
    peer = await PoolPeer.start("pool", lane, str(lanes_in_use.folder))
    processes.push_async_callback(peer.kill)
    channels = await processes.enter_async_context(Channels())
    lanes = PoolLanes(channels, (lane, "grpc"), SlotMemory(64 << 20, shared=False))
    processes.push_async_callback(lanes.close)
    assert (await lanes.to(peer.first)).name == lane
    return peer, PoolClient(channels, peer.first, lanes=lanes)


async def test_what_a_pool_gave_stays_good_when_it_is_killed(lane: LaneName, processes: AsyncExitStack) -> None:
    peer, client = await pool_of(lane, processes)
    num_checked = 0

    async def then(frames: list[Frame]) -> None:
        nonlocal num_checked
        await peer.kill()
        for came in frames:
            assert open_frame(came) == frame(came.key, came.layer, LARGE).payload
        num_checked += len(frames)

    with pytest.raises(PrfaasError):
        await asyncio.wait_for(Reading(client, LONG, wait_s=LIMIT_S).run(then), LIMIT_S)
    assert num_checked > 0


async def test_a_pool_that_stands_still_in_mid_fetch_goes_on(lane: LaneName, processes: AsyncExitStack) -> None:
    peer, client = await pool_of(lane, processes)
    pid, has_stopped = peer.process.pid, False

    async def then(frames: list[Frame]) -> None:
        nonlocal has_stopped
        if not has_stopped:
            has_stopped = True
            os.kill(pid, signal.SIGSTOP)
            await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
            os.kill(pid, signal.SIGCONT)

    reading = await Reading(client, LONG, wait_s=0.5).run(then)
    assert has_stopped
    assert set(reading.got) == large_entries(LONG[:HALF])
    assert reading.missing == large_entries(LONG[HALF:])
