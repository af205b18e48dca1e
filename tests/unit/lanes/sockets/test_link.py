"""What a link does when all is well, both ends in one process."""

import asyncio

from tests.support.lanes import linked, plain, sealed


async def test_frames_arrive_as_they_were_sent() -> None:
    frames = [sealed(number, 1000 + 300 * number, layer=number % 3) for number in range(1, 200)]
    async with linked() as ends, asyncio.timeout(40):
        with ends.far.incoming(7) as incoming:
            await ends.near.send(7, frames[:150])
            await ends.near.send(7, frames[150:])
            first, second = [await anext(incoming) for _ in range(2)]
        assert plain(first.frames) == frames[:150]
        assert plain(second.frames) == frames[150:]
        assert not (first.corrupt or first.lost or second.corrupt or second.lost)
        assert ends.near.num_bytes_sent == ends.far.num_bytes_received > sum(len(frame.payload) for frame in frames)
        ends.far_slots.free_all(first.frames + second.frames)
