"""Processes that share memory, told what to do line by line.

`python -m tests.support.shared_memory pool FOLDER` or `... client PATH TOKEN`: each prints a line for each thing that
it was told.
"""

import asyncio
import gc
import os
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import ClassVar, Self

from shared.lanes.shared_memory.attachment import Attachment
from shared.lanes.shared_memory.door import MemoryDoor
from shared.lanes.slabs import SLAB_BYTES
from shared.lanes.slots import SlotMemory
from shared.proto import prfaas_pb2 as pb
from tests.support.waiting import LIMIT_S


def descriptors() -> int:
    """Return how many descriptors this process has, without those that only wait for the collector."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


class LaneProcess:
    """One such process."""

    module: ClassVar[str] = "tests.support.shared_memory"

    def __init__(self, process: Process) -> None:
        self.process = process
        self.first = ""

    @classmethod
    async def start(cls, *arguments: str) -> Self:
        command = (sys.executable, "-m", cls.module, *arguments)
        # A thread that finds the allocator busy takes an arena of 128 MiB of address space: for a process that has
        # little of it left, chance would decide whether it can go on.
        environ = {**os.environ, "MALLOC_ARENA_MAX": "1"}
        started = cls(await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=environ))
        started.first = await started._line()
        return started

    @classmethod
    async def client(cls, offer: pb.SharedMemoryOffer) -> Self:
        return await cls.start("client", offer.path, offer.token.hex())

    async def tell(self, *words: object) -> str:
        """Tell it something and return what it says."""
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        return await self._line()

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await asyncio.wait_for(self.process.wait(), LIMIT_S)

    async def _line(self) -> str:
        assert self.process.stdout is not None
        while not (line := await asyncio.wait_for(self.process.stdout.readline(), LIMIT_S)).startswith(b"> "):
            assert line, "the process has ended"  # else a line of its log
        return line[2:].decode().strip()


def say(word: object) -> None:
    """Answer whoever has started this process."""
    sys.stdout.write(f"> {word}\n")
    sys.stdout.flush()


async def _client(path: str, token: str) -> None:
    attachment = await Attachment.attach(pb.SharedMemoryOffer(path=path, token=bytes.fromhex(token)), LIMIT_S)
    say(attachment.number)
    while line := (await asyncio.to_thread(sys.stdin.readline)).split():
        word, numbers = line[0], [int(number) for number in line[1:]]
        if word == "read":
            say(bytes(attachment.view(*numbers)).hex())
        elif word == "write":
            place, num_bytes, value = numbers
            attachment.slot(place, num_bytes)[:] = bytes([value]) * num_bytes
            say("written")
        elif word == "let_go":
            attachment.let_go(numbers[0])
            say("let go")


async def _pool(folder: str) -> None:
    memory = SlotMemory(4 * SLAB_BYTES, shared=True)
    door = MemoryDoor(memory, Path(folder))
    await door.start()
    kept = memory.keep(b"payload" * 100)
    say(f"{door.offer.path} {door.offer.token.hex()} {memory.place(kept)}")
    await asyncio.to_thread(sys.stdin.readline)
    await door.close()


if __name__ == "__main__":
    asyncio.run(_client(*sys.argv[2:]) if sys.argv[1] == "client" else _pool(*sys.argv[2:]))
