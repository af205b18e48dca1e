"""An object store in memory that is slow, fails, is full or gives garbage back, as told."""

import asyncio
from collections.abc import Sequence
from typing import Any

from obstore.exceptions import GenericError
from obstore.store import MemoryStore

FULL = "Generic LocalFileSystem error: Unable to copy data to file: No space left on device (os error 28)"


class FaultyClient:
    """An `ObjectClient`. Set what is to go wrong at any time; `calls` counts what was asked, faults included."""

    def __init__(self) -> None:
        self.memory = MemoryStore()
        self.delay_s = 0.0
        self.error = ""  # of every call
        self.fails_of = ""  # the one object whose calls all fail
        self.put_error = ""
        self.loses_answers = False  # of puts: they take effect and time out
        self.capacity: int | None = None  # bytes; a put beyond it finds the disk full
        self.flips_reads = False
        self.stop_puts: asyncio.Event | None = None  # puts wait for it
        self.calls: dict[str, int] = {}
        self.read_paths: list[str] = []

    async def put_async(self, path: str, file: Any, *, use_multipart: bool) -> Any:
        await self._fault("put", path)
        if self.stop_puts is not None:
            await self.stop_puts.wait()
        if self.put_error:
            raise GenericError(self.put_error)
        used = sum(item["size"] for portion in self.memory.list() for item in portion)
        if self.capacity is not None and used + sum(map(len, file)) > self.capacity:
            raise GenericError(FULL)
        result = await self.memory.put_async(path, file, use_multipart=use_multipart)
        if self.loses_answers:
            raise TimeoutError
        return result

    async def get_async(self, path: str, *, options: Any) -> Any:
        await self._fault("get", path)
        return await self.memory.get_async(path, options=options)

    async def get_range_async(self, path: str, *, start: int, length: int) -> Any:
        await self._fault("get_range", path)
        self.read_paths.append(path)
        data = bytes(await self.memory.get_range_async(path, start=start, length=length))
        return bytes([data[0] ^ 1]) + data[1:] if self.flips_reads else data

    async def delete_async(self, paths: str) -> None:
        await self._fault("delete", paths)
        await self.memory.delete_async(paths)

    def list(self, *, chunk_size: int) -> Any:
        return self._listing(chunk_size)

    async def _listing(self, chunk_size: int) -> Any:
        await self._fault("list")
        async for portion in self.memory.list(chunk_size=chunk_size):
            yield portion

    async def _fault(self, call: str, path: str = "") -> None:
        self.calls[call] = self.calls.get(call, 0) + 1
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.error or (path and path == self.fails_of):
            raise GenericError(self.error or f"{path} cannot be had")

    # What lies there, for tests to look at and to damage.

    def names(self) -> Sequence[str]:
        return sorted(item["path"] for portion in self.memory.list() for item in portion)

    def content(self, path: str) -> bytes:
        return bytes(self.memory.get(path).bytes())

    def replace(self, path: str, data: bytes) -> None:
        self.memory.put(path, data)
