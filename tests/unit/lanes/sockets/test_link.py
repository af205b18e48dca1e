"""What both ends of a link promise when all is well, and when one is slow."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from shared.errors import BadRequest, LaneBroken
from shared.kv.frame import Frame
from shared.lanes.records import RECORD_BYTES
from shared.lanes.slots import SlotMemory
from shared.lanes.sockets.batch import MAX_ENTRIES
from shared.lanes.sockets.connection import SLOT_PATIENCE_S
from shared.lanes.sockets.dial import dial
from shared.lanes.sockets.link import SocketLink
from shared.lanes.sockets.options import LinkOptions
from shared.lanes.sockets.receiving import Incoming
from shared.lanes.sockets.server import SocketServer
from tests.support.lanes import CountedSlots, linked, plain, sealed
from tests.support.waiting import LIMIT_S, until

MIB = 1 << 20


async def take(incoming: Incoming, num_frames: int) -> list[Frame]:
    """Return the next frames of a stream, however many batches they are."""
    frames: list[Frame] = []
    async with asyncio.timeout(LIMIT_S):
        while len(frames) < num_frames:
            received = await anext(incoming)
            assert not received.corrupt
            assert not received.lost
            frames += received.frames
    return frames


async def test_frames_arrive_as_they_were_sent() -> None:
    frames = [sealed(number, 1000 + 300 * number, layer=number % 3) for number in range(1, 200)]
    async with linked() as ends:
        with ends.far.incoming(7) as incoming:
            await ends.near.send(7, frames[:150])
            await ends.near.send(7, [])
            await ends.near.send(7, frames[150:])
            received = await take(incoming, len(frames))
        assert plain(received) == frames
        assert ends.near.num_bytes_sent == ends.far.num_bytes_received > sum(len(frame.payload) for frame in frames)
        assert ends.far.num_bytes_sent == ends.near.num_bytes_received == 0
        ends.far_slots.free_all(received)


async def test_a_batch_of_more_parts_than_one_system_call_takes() -> None:
    frames = [sealed(number, 40 + number % 50) for number in range(1, MAX_ENTRIES + 1)]
    async with linked() as ends:
        with ends.near.incoming(1) as incoming:
            await ends.far.send(1, frames)
            received = await take(incoming, len(frames))
        assert plain(received) == frames
        with pytest.raises(BadRequest):
            await ends.far.send(1, [*frames, frames[0]])
        ends.near_slots.free_all(received)


async def test_one_connection_keeps_the_order_of_a_stream() -> None:
    async with linked() as ends:
        with ends.far.incoming(1) as incoming:
            sending = [asyncio.create_task(ends.near.send(1, [sealed(number, 5000)])) for number in range(1, 60)]
            received = await take(incoming, len(sending))
            await asyncio.gather(*sending)
        assert [frame.key for frame in received] == [sealed(number, 5000).key for number in range(1, 60)]
        ends.far_slots.free_all(received)


@pytest.mark.parametrize("num_connections", [1, 3])
async def test_many_streams_both_ways_at_once(num_connections: int) -> None:
    num_streams, num_batches = 8, 12

    async def send(link: SocketLink, stream: int) -> None:
        for number in range(num_batches):
            frames = [sealed(1000 * stream + 10 * number + place, 30_000 + place) for place in range(1, 4)]
            await link.send(stream, frames, layer=stream)

    async def receive(link: SocketLink, slots: CountedSlots, stream: int) -> None:
        with link.incoming(stream) as incoming:
            ready[link] += 1
            received = await take(incoming, 3 * num_batches)
        expected = {1000 * stream + 10 * number + place for number in range(num_batches) for place in range(1, 4)}
        assert {int.from_bytes(frame.key, "big") for frame in received} == expected
        assert all(frame == sealed(int.from_bytes(frame.key, "big"), len(frame.payload)) for frame in plain(received))
        slots.free_all(received)

    ready: Counter[SocketLink] = Counter()
    async with linked(num_connections) as ends, asyncio.TaskGroup() as tasks:
        for stream in range(num_streams):
            tasks.create_task(receive(ends.far, ends.far_slots, stream))
            tasks.create_task(receive(ends.near, ends.near_slots, stream))
        await until(lambda: ready[ends.far] == ready[ends.near] == num_streams)
        for stream in range(num_streams):
            tasks.create_task(send(ends.near, stream))
            tasks.create_task(send(ends.far, stream))


async def test_a_consumer_that_stops_stops_its_sender() -> None:
    size, limit = MIB, 3 * (MIB + RECORD_BYTES)
    async with linked(2, far=LinkOptions(max_unread_bytes=limit)) as ends:
        with ends.far.incoming(1) as incoming:
            sending = [asyncio.create_task(ends.near.send(1, [sealed(number, size)])) for number in range(1, 60)]
            await until(lambda: ends.far.unread_bytes == limit)
            held = await until_still(lambda: ends.near.num_bytes_sent)
            assert held < 60 * size
            assert ends.far_slots.taken_bytes == 3 * MIB
            assert ends.near.num_waiting
            received = await take(incoming, len(sending))
            await asyncio.gather(*sending)
            assert ends.far.unread_bytes == 0
        ends.far_slots.free_all(received)


async def consume(incoming: Incoming, slots: CountedSlots) -> None:
    """Free what comes until the stream fails."""
    async with asyncio.timeout(LIMIT_S):
        async for received in incoming:
            slots.free_all(received.frames)


async def until_still(count: Callable[[], int]) -> int:
    """Return a count when it has not changed for a while."""
    last, num_equal = -1, 0
    async with asyncio.timeout(LIMIT_S):
        while num_equal < 100:
            await asyncio.sleep(0.001)
            num_equal = num_equal + 1 if count() == last else 0
            last = count()
    return last


async def test_a_batch_larger_than_all_that_may_be_unread_passes() -> None:
    async with linked(far=LinkOptions(max_unread_bytes=1000)) as ends:
        with ends.far.incoming(1) as incoming:
            await ends.near.send(1, [sealed(1, MIB)])
            received = await take(incoming, 1)
        ends.far_slots.free_all(received)


async def test_the_urgent_goes_before_what_waits() -> None:
    """One connection is full; what waits for it is sent by urgency, not in the order in which it came."""
    async with linked(far=LinkOptions(max_unread_bytes=MIB)) as ends:
        with ends.far.incoming(1) as incoming:
            sending = [asyncio.create_task(ends.near.send(1, [sealed(1, 32 * MIB)]))]  # more than any buffer
            await until(lambda: ends.far.unread_bytes and not ends.near.num_waiting)
            received = [*await take(incoming, 0)]
            sending.append(asyncio.create_task(ends.near.send(1, [sealed(2, 32 * MIB)])))
            await until(lambda: not ends.near.num_waiting)  # a thread has it, and the other end reads no more
            late = [(13, True, 0), (14, True, 1), (12, False, 7), (11, False, 3), (10, False, 0)]
            for number, is_background, layer in late:
                frames = [sealed(number, 1000)]
                sending.append(asyncio.create_task(ends.near.send(1, frames, is_background=is_background, layer=layer)))
                await until(lambda: ends.near.num_waiting == len(sending) - 2)
            received += await take(incoming, len(sending))
            await asyncio.gather(*sending)
        assert [int.from_bytes(frame.key, "big") for frame in received] == [1, 2, 10, 11, 12, 13, 14]
        ends.far_slots.free_all(received)


async def test_who_is_cancelled_while_waiting_sends_nothing() -> None:
    async with linked(far=LinkOptions(max_unread_bytes=MIB)) as ends:
        with ends.far.incoming(1) as incoming:
            first = asyncio.create_task(ends.near.send(1, [sealed(1, 32 * MIB)]))
            await until(lambda: ends.far.unread_bytes and not ends.near.num_waiting)
            second = asyncio.create_task(ends.near.send(1, [sealed(2, 32 * MIB)]))
            waiting = asyncio.create_task(ends.near.send(1, [sealed(3, 1000)]))
            await until(lambda: ends.near.num_waiting == 1)
            waiting.cancel()
            second.cancel()
            await asyncio.wait([waiting, second])
            assert waiting.cancelled()
            assert second.cancelled()
            last = asyncio.create_task(ends.near.send(1, [sealed(4, 1000)]))
            received = await take(incoming, 3)
            await asyncio.gather(first, last)
        assert plain(received) == [sealed(1, 32 * MIB), sealed(2, 32 * MIB), sealed(4, 1000)]
        ends.far_slots.free_all(received)


async def test_what_nobody_awaits_is_thrown_away() -> None:
    async with linked(far=LinkOptions(max_unread_bytes=4 * (MIB + RECORD_BYTES))) as ends:
        with ends.far.incoming(1) as incoming:
            await ends.near.send(1, [sealed(1, MIB)])
            ends.far_slots.free_all(await take(incoming, 1))
            for number in range(2, 6):
                await ends.near.send(1, [sealed(number, MIB)])
            await until(lambda: ends.far.unread_bytes == 4 * (MIB + RECORD_BYTES))
        await until(lambda: ends.far.unread_bytes == ends.far_slots.num_taken == 0)  # a thread may just have one
        for number in range(20):
            await ends.near.send(1, [sealed(number, MIB)])
        await ends.near.send(99, [sealed(1, MIB)])
        with ends.far.incoming(2) as incoming:
            await ends.near.send(2, [sealed(7, MIB)])
            received = await take(incoming, 1)
        assert plain(received) == [sealed(7, MIB)]
        ends.far_slots.free_all(received)


async def test_a_stream_that_ends_lets_its_link_go_on() -> None:
    """The thread waits for the room that a stopped consumer took; the end of that consumer's stream gives it back."""
    async with linked(far=LinkOptions(max_unread_bytes=MIB)) as ends:
        with ends.far.incoming(2) as other:
            with ends.far.incoming(1):
                sending = [asyncio.create_task(ends.near.send(1, [sealed(number, MIB)])) for number in range(1, 40)]
                sending.append(asyncio.create_task(ends.near.send(2, [sealed(100, MIB)])))
                await until(lambda: ends.far.unread_bytes and ends.near.num_waiting)
                await until_still(lambda: ends.near.num_bytes_sent)
                assert ends.near.num_waiting
            received = await take(other, 1)
            await asyncio.gather(*sending)
        ends.far_slots.free_all(received)


async def test_a_stream_number_is_not_in_use_twice() -> None:
    async with linked() as ends:
        with ends.far.incoming(2), ends.near.incoming(2), pytest.raises(BadRequest), ends.far.incoming(2):
            pass


async def test_without_slots_the_entries_are_lost_and_said_to_be() -> None:
    async with linked(far_slots=CountedSlots(3 * MIB), far=LinkOptions()) as ends:
        with ends.far.incoming(1) as incoming, ends.far.incoming(2) as other:
            await ends.near.send(1, [sealed(1, MIB), sealed(2, MIB)])
            held = await take(incoming, 2)
            await ends.near.send(2, [sealed(3, MIB, layer=0), sealed(3, MIB, layer=5), sealed(4, 100, layer=1)])
            async with asyncio.timeout(LIMIT_S):
                received = await anext(other)
            assert received.frames == []
            assert received.lost == [(sealed(3, 1).key, 0b100001), (sealed(4, 1).key, 0b10)]
            ends.far_slots.free_all(held)
            await ends.near.send(2, [sealed(5, 3 * MIB)])
            held = await take(other, 1)
        assert plain(held) == [sealed(5, 3 * MIB)]
        ends.far_slots.free_all(held)


async def test_a_batch_waits_a_moment_for_slots_that_others_give_back() -> None:
    async with linked(far_slots=CountedSlots(MIB), far=LinkOptions()) as ends:
        with ends.far.incoming(1) as incoming:
            await ends.near.send(1, [sealed(1, MIB)])
            held = await take(incoming, 1)
            await ends.near.send(1, [sealed(2, MIB)])
            asyncio.get_running_loop().call_later(SLOT_PATIENCE_S / 10, ends.far_slots.free_all, held)
            held = await take(incoming, 1)
        assert plain(held) == [sealed(2, MIB)]
        ends.far_slots.free_all(held)


async def test_corrupt_entries_are_told_from_good_ones_in_the_same_batch() -> None:
    good, bad = sealed(1, 5000), sealed(2, 5000, layer=3)
    bad = bad._replace(payload=bytes(5000))
    async with linked() as ends:
        with ends.far.incoming(1) as incoming, ends.near.incoming(1) as unverified:
            await ends.near.send(1, [good, bad])
            await ends.far.send(1, [good, bad])
            async with asyncio.timeout(LIMIT_S):
                received = await anext(incoming)
            passed = await take(unverified, 2)
        assert plain(received.frames) == [good]
        assert received.corrupt == [(bad.key, 0b1000)]
        assert plain(passed) == [good, bad]
        ends.far_slots.free_all(received.frames)
        ends.near_slots.free_all(passed)


async def test_close_fails_whoever_waits_at_both_ends() -> None:
    async with linked(2, far=LinkOptions(max_unread_bytes=MIB)) as ends:
        with ends.far.incoming(1) as incoming, ends.near.incoming(1) as other:
            sending = [asyncio.create_task(ends.near.send(1, [sealed(number, 8 * MIB)])) for number in range(1, 20)]
            waiting = asyncio.create_task(anext(other))
            await until(lambda: ends.far.unread_bytes and ends.near.num_waiting)
            await ends.near.close()
            await ends.near.close()
            results = await asyncio.gather(*sending, return_exceptions=True)
            assert {type(result) for result in results} <= {LaneBroken, type(None)}
            assert isinstance(results[-1], LaneBroken)
            with pytest.raises(LaneBroken):
                await waiting
            with pytest.raises(LaneBroken):
                await ends.near.send(1, [sealed(1, 10)])
            with pytest.raises(LaneBroken), ends.near.incoming(3):
                pass
            assert ends.near.num_connections == 0
            with pytest.raises(LaneBroken):
                await consume(incoming, ends.far_slots)  # what had arrived, then the end
            await until(lambda: ends.server.link(ends.far.number) is None)


async def test_counts_stay_when_connections_have_gone() -> None:
    async with linked(2) as ends:
        with ends.far.incoming(1) as incoming:
            await ends.near.send(1, [sealed(1, 1000)])
            ends.far_slots.free_all(await take(incoming, 1))
        sent = ends.near.num_bytes_sent
        await ends.near.close()
        assert ends.near.num_bytes_sent == sent > 1000
        await until(lambda: ends.far.broken)
        assert ends.far.num_bytes_received == sent


async def test_payloads_arrive_in_the_slots_that_the_pool_keeps() -> None:
    """With the pool's own memory: nothing is copied from where it arrived, and all of it can be used again."""
    memory = SlotMemory(64 * MIB, shared=True)
    server = SocketServer(memory)
    await server.start("127.0.0.1", 0)
    link = await dial("127.0.0.1", server.offer, CountedSlots(), None, 2, timeout_s=LIMIT_S)
    far = server.link(link.number)
    assert far is not None
    frames = [sealed(number, 49_000 + number) for number in range(1, 40)]
    try:
        with far.incoming(1) as incoming:
            for _ in range(60):  # more than twice the memory
                await link.send(1, frames)
                received = await take(incoming, len(frames))
                places = [memory.place(frame.payload) for frame in received]  # type: ignore[arg-type]
                kept = [frame._replace(payload=memory.keep(frame.payload)) for frame in received]
                assert [memory.place(frame.payload) for frame in kept] == places  # type: ignore[arg-type]
                assert plain(kept) == frames
                assert memory.num_kept == len(frames)
                del received
                while kept:
                    memory.free(kept.pop().payload)
            await link.send(1, [*frames, frames[0]._replace(payload=bytes(100))])
            async with asyncio.timeout(LIMIT_S):
                last = await anext(incoming)
            assert last.corrupt == [(frames[0].key, 1)]
        for frame in last.frames:
            memory.free(frame.payload)
    finally:
        await link.close()
        await server.close()
        memory.close()
    assert memory.num_taken == memory.num_kept == 0
