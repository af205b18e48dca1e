"""The far end of a socket lane as a process that can be stopped and killed: `python -m tests.support.lane_peer ...`."""

import asyncio
import json
import sys

from shared.lanes.sockets.dial import dial
from shared.lanes.sockets.options import LaneOffer
from tests.support.lanes import CountedSlots, sealed


async def main(port: int, token: str, num_connections: int, num_bytes: int) -> None:
    """Connect, say the link's number, then send batches on stream 1 for ever and take what comes on stream 2."""
    slots = CountedSlots()
    offer = LaneOffer(port, bytes.fromhex(token), num_connections)
    link = await dial("127.0.0.1", offer, slots, None, num_connections, timeout_s=30)
    sys.stdout.write(json.dumps(link.number) + "\n")
    sys.stdout.flush()
    frames = [sealed(number, num_bytes) for number in range(1, 5)]

    async def send() -> None:
        while True:
            await link.send(1, frames)

    with link.incoming(2) as incoming:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            async for received in incoming:
                slots.free_all(received.frames)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
