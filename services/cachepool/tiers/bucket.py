"""The object store by URL, over `obstore`: every call has a deadline, every failure is one of our errors.

obstore's `..._async` calls run on threads of its own: the event loop stays free, also with a local folder.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from obstore.exceptions import BaseError
from obstore.store import from_url

from shared.errors import BlockMissing, CorruptFrame, DeadlineExceeded, Overloaded, PrfaasError, Unavailable

MAX_RETRIES = 2
LIST_CHUNK = 1000
# As obstore spells ENOSPC, EFBIG and EDQUOT, and a range that begins behind an object's end.
_FULL = re.compile(r"\(os error (28|27|122)\)")
_SHORT = re.compile(r"range was invalid|InvalidRange|Range Not Satisfiable", re.IGNORECASE)


OnCall = Callable[[str, float, PrfaasError | None], None]
"""Takes operation, seconds, and the error if it failed."""


class Head(NamedTuple):
    """The beginning of an object."""

    data: bytes
    object_bytes: int
    modified: float  # seconds since 1970


class ObjectClient(Protocol):
    """What we use of an obstore store; tests put one with faults in its place."""

    async def put_async(self, path: str, file: Any, *, use_multipart: bool) -> Any: ...
    async def get_async(self, path: str, *, options: Any) -> Any: ...
    async def get_range_async(self, path: str, *, start: int, length: int) -> Any: ...
    async def delete_async(self, paths: str) -> None: ...
    def list(self, *, chunk_size: int) -> Any: ...


def open_client(url: str, timeout_s: float) -> ObjectClient:
    """Open the object store behind `url`; credentials and endpoints come from the environment, as obstore defines it.

    Raises ValueError when there can be no store of that URL. A local folder is made if need be.
    """
    try:
        if local_folder(url) is not None:
            return from_url(url, mkdir=True)
        if url.startswith("memory:"):
            return from_url(url)
        limit = timedelta(seconds=timeout_s)
        return from_url(url, retry_config={"max_retries": MAX_RETRIES, "retry_timeout": limit})
    except (BaseError, OSError) as error:
        raise ValueError(_first_line(error)) from error


def local_folder(url: str) -> Path | None:
    """Return the folder of a `file://` URL, None for any other."""
    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


class Bucket:
    """Objects by name. Raises `BlockMissing`, `CorruptFrame` (shorter than asked for), `Overloaded` (full),
    `DeadlineExceeded` and `Unavailable` (everything else).

    A `put` that failed may still take effect later, wholly or not at all.
    """

    def __init__(
        self, client: ObjectClient, timeout_s: float, on_call: Callable[[str, float, PrfaasError | None], None]
    ) -> None:
        """`on_call(operation, seconds, error)` is told each call's end."""
        self._client = client
        self._timeout_s = timeout_s
        self._on_call = on_call

    async def put(self, path: str, parts: Sequence[bytes | memoryview]) -> None:
        async with self._call("put", path):
            await self._client.put_async(path, parts, use_multipart=False)

    async def read(self, path: str, offset: int, length: int) -> memoryview:
        async with self._call("read", path):
            data = memoryview(await self._client.get_range_async(path, start=offset, length=length))
            if len(data) != length:
                raise CorruptFrame(f"{len(data)} bytes of {path} at {offset}, asked for {length}")
            return data

    async def head(self, path: str, length: int) -> Head:
        """Read the first `length` bytes, or all there are, and the object's size."""
        async with self._call("head", path):
            result = await self._client.get_async(path, options={"range": (0, length)})
            data = bytes(await result.bytes_async())
            return Head(data, result.meta["size"], result.meta["last_modified"].timestamp())

    async def delete(self, path: str) -> None:
        """Delete an object; one that is not there is as good as deleted."""
        try:
            async with self._call("delete", path):
                await self._client.delete_async(path)
        except BlockMissing:
            pass

    async def names(self) -> AsyncIterator[list[str]]:
        """Yield the names of all objects, many at a time; each portion has a deadline of its own."""
        portions = aiter(self._client.list(chunk_size=LIST_CHUNK))
        while True:
            async with self._call("list", ""):
                portion: Iterable[Any] | None = await anext(portions, None)
            if portion is None:
                return
            yield [item["path"] for item in portion]

    @asynccontextmanager
    async def _call(self, operation: str, path: str) -> AsyncIterator[None]:
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except (BaseError, OSError, ValueError, PrfaasError) as error:
            failed = _error(operation, path, error)
            self._on_call(operation, time.monotonic() - started, failed)
            raise failed from error
        self._on_call(operation, time.monotonic() - started, None)


def _error(operation: str, path: str, error: Exception) -> PrfaasError:
    text = f"{operation} {path}: {_first_line(error)}"
    if isinstance(error, PrfaasError):
        return error
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f"{operation} {path}: the object store did not answer in time")
    if isinstance(error, FileNotFoundError) and operation != "put":
        return BlockMissing(text)
    if _FULL.search(str(error)):
        return Overloaded(text)
    if _SHORT.search(str(error)):
        return CorruptFrame(text)
    return Unavailable(text)


def _first_line(error: Exception) -> str:
    """obstore's messages go on with a dump of the error."""
    return str(error).partition("\n")[0]
