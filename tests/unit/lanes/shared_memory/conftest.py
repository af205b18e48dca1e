"""A pool's memory with its door, in a folder whose path is short enough for a socket."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.lanes.shared_memory.door import MemoryDoor
from shared.lanes.slabs import SLAB_BYTES
from shared.lanes.slots import SlotMemory


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="prfaas-") as folder:
        yield Path(folder) / "lanes"


@pytest.fixture
def memory() -> Iterator[SlotMemory]:
    memory = SlotMemory(16 * SLAB_BYTES, shared=True)
    yield memory
    memory.close()


@pytest.fixture
async def door(memory: SlotMemory, folder: Path) -> AsyncIterator[MemoryDoor]:
    door = MemoryDoor(memory, folder, max_clients=8, max_streams=4)
    await door.start()
    yield door
    await door.close()
