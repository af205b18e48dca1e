"""What an earlier life of the pool left in the object tier: whole objects are taken over, torn ones discarded."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

from services.cachepool.tiers.context import TierContext
from services.cachepool.tiers.index import Stored
from services.cachepool.tiers.objects import HEAD_BYTES, ObjectHeader, header_size, key_of_path, object_path, parse
from services.cachepool.tiers.room import Room
from shared.errors import BlockMissing, CorruptFrame, PrfaasError
from shared.ids import BlockKey
from shared.log import get_logger

log = get_logger()

MAX_CHECKS = 8
MAX_ATTEMPTS = 3
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


class Recovery:
    """Owns the knowledge of which objects have not been looked at; works in the background, while the pool serves."""

    def __init__(self, context: TierContext, room: Room, folder: Path | None) -> None:
        """`folder` is where a local store has its files: it alone can have remains of unfinished ones."""
        self._bucket = context.bucket
        self._index = context.index
        self._metrics = context.metrics
        self._room = room
        self._folder = folder
        self._started = time.time()
        self._unchecked: dict[BlockKey, None] = {}
        self._is_listed = False
        self.done = asyncio.Event()  # everything that was there at the start was looked at

    async def run(self) -> None:
        """Take over everything that is there. A store that fails is asked again, later and later."""
        if self._folder is not None:
            try:
                self._metrics.torn.inc(await asyncio.to_thread(_sweep, self._folder, self._started))
            except OSError as error:
                log.warning("remains_not_swept", error=str(error))
        pause_s = FIRST_PAUSE_S
        while not self._is_listed:
            try:
                await self._list()
            except PrfaasError as error:
                log.warning("objects_not_listed", error=str(error), code=error.code)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        num_found, found = len(self._unchecked), iter(list(self._unchecked))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(MAX_CHECKS):
                tasks.create_task(self._check_all(found))
        try:
            await self._room.fit()
        except PrfaasError as error:
            log.warning("objects_exceed_budget", error=str(error), code=error.code)
        self.done.set()
        log.info("objects_recovered", num_found=num_found, num_stored=len(self._index), bytes=self._index.used_bytes)

    async def settle(self, key: BlockKey) -> None:
        """Look at a block's object if that has not been done. Raises what reading raises."""
        if not self._is_listed or key in self._unchecked:
            await self.check(key)

    def doubt(self, key: BlockKey) -> None:
        """A write failed that may have taken effect: `settle` has to look."""
        self._unchecked[key] = None

    async def check(self, key: BlockKey) -> None:
        """Make the index agree with a block's object: add it, or discard it when it is torn, or forget it."""
        try:
            header, modified = await self._head(key)
        except BlockMissing:
            self._index.remove(key)
        except CorruptFrame as error:
            log.warning("object_torn", key=key.hex(), error=str(error))
            self._index.remove(key)
            self._metrics.torn.inc()
            await self._bucket.delete(object_path(key))
        else:
            before = self._index.get(key)
            if before is None or before.raw_header != header.raw:
                self._index.add(Stored.of(header, modified))
                self._metrics.recovered.inc()
        self._unchecked.pop(key, None)

    async def _head(self, key: BlockKey) -> tuple[ObjectHeader, float]:
        path = object_path(key)
        head = await self._bucket.head(path, HEAD_BYTES)
        size = header_size(head.data)
        data = head.data
        if len(data) < size <= head.object_bytes:
            data = bytes(await self._bucket.read(path, 0, size))
        header = parse(data, head.object_bytes)
        if header.key != key:
            raise CorruptFrame(f"the object of block {header.key.hex()[:12]} under the name of another")
        return header, head.modified

    async def _list(self) -> None:
        async for names in self._bucket.names():
            for name in names:
                key = key_of_path(name)
                if key is not None and self._index.get(key) is None:  # else written by this life already
                    self._unchecked[key] = None
        self._is_listed = True

    async def _check_all(self, keys: Iterator[BlockKey]) -> None:
        for key in keys:
            pause_s = FIRST_PAUSE_S
            for _ in range(MAX_ATTEMPTS):
                try:
                    await self.settle(key)
                    break
                except PrfaasError as error:
                    log.warning("object_not_checked", key=key.hex(), error=str(error), code=error.code)
                    await asyncio.sleep(pause_s)
                    pause_s *= 2


def _sweep(folder: Path, before: float) -> int:
    """Delete the remains of writes that were never finished, which a local store keeps as `name#number`."""
    count = 0
    for path in folder.glob("??/*#*"):
        if path.is_file() and path.stat().st_mtime < before:
            path.unlink(missing_ok=True)
            count += 1
    return count
