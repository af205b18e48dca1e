"""Entries from the pool into pages, with a gate per layer that opens when the layer's last entry has landed."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from functools import cache, partial
from itertools import compress

from torch import Tensor

from shared.deadline import Deadline
from shared.engine.gather import gathered
from shared.engine.in_order import in_order
from shared.engine.stage import Arrival
from shared.engine.thread import end_all
from shared.engine.transfer import PageTransfer
from shared.errors import CorruptFrame, DeadlineExceeded, PrfaasError
from shared.ids import BlockKey
from shared.kv.codec import Codec, Fidelity, Payload
from shared.kv.entries import BlockEntries, Source, reindexed
from shared.kv.frame import Frame, headers_of, open_frame
from shared.kv.layout import iter_layers
from shared.log import get_logger
from shared.model.pages.reservation import Reservation
from shared.patience import overdue
from shared.pool.lanes.lane import Arrived
from shared.pool.nodes import Pool
from shared.timings import LayerMarks

log = get_logger()

MAX_AHEAD_BYTES = 32 * 1024 * 1024
"""What may wait to be landed, and is then landed together: a copy to a device is as quick as it is long."""

MAX_LANDING = 2
"""Landings of one fetch that the copier has to do: with the next one in hand it does not wait for the event loop."""

_RAW, _LOSSLESS = Codec.RAW, Fidelity.LOSSLESS  # to look a member up in its Enum takes longer than to compare it


class PageFetch:
    """One request's entries on their way into its pages.

    The caller owns the reservation and keeps it until `run` has returned or raised. `outstanding[block]` holds the
    layers that have not landed; an entry lands only after its checksum passed.
    """

    def __init__(
        self,
        transfer: PageTransfer,
        reservation: Reservation,
        keys: Sequence[BlockKey],
        wanted: Mapping[int, int],
        on_landed: Callable[[], None],
        at_least: Fidelity = Fidelity.LOSSLESS,
        marks: LayerMarks | None = None,
    ) -> None:
        """`wanted` maps a block index to a bitmask of layers; `on_landed` is called when a gate may have opened.

        Entries of a lower fidelity than `at_least` count as corrupt. `marks` notes the layers that land.
        """
        self._transfer = transfer
        self._reservation = reservation
        self._keys = keys
        self._block_of = {keys[block]: block for block in wanted}
        self._on_landed = on_landed
        self._at_least = at_least
        self._marks = marks
        self._hurry = asyncio.Event()
        self._met_corruption = False
        self.outstanding = dict(wanted)
        self.is_overdue = False  # its patience has ended before everything had landed
        self._asked: dict[int, int] = {}  # what was outstanding when the stream in hand began; for the copier
        self._taken: set[tuple[int, int]] = set()  # (block, layer) of it that have landed or are about to; the copier's
        self._left_in_layer = [0] * transfer.layout.num_layers
        for mask in wanted.values():
            for layer in iter_layers(mask):
                self._left_in_layer[layer] += 1

    def num_open_layers(self) -> int:
        """Return how many leading layers have all their entries."""
        return next((layer for layer, left in enumerate(self._left_in_layer) if left), len(self._left_in_layer))

    def _num_left(self) -> int:
        return sum(self._left_in_layer)

    def stop_waiting(self) -> None:
        """Take what is present and give up the rest: nobody will write what is not there yet."""
        self._hurry.set()

    async def run(
        self,
        pool: Pool,
        sources: Sequence[Source],
        wait_s: float,
        deadline: Deadline,
        patience_s: float | None = None,
    ) -> None:
        """Fetch until everything landed or is known to be missing; then `outstanding` says what is.

        Corrupt entries are fetched once more, alone. A lost pool leaves entries outstanding, it does not raise. Nor
        does the end of `patience_s`: what is late by then, as `overdue` has it, is outstanding. Raises
        `DeadlineExceeded`.
        """
        fetching = asyncio.create_task(self._fetch(pool, sources, wait_s, deadline), name="fetch")
        late = asyncio.create_task(overdue(self._num_left, patience_s), name="fetch patience")
        try:
            await asyncio.wait({fetching, late}, return_when=asyncio.FIRST_COMPLETED)
            self.is_overdue = not fetching.done()
            if fetching.done():
                await fetching
        finally:
            await end_all(fetching, late)
        missing = sum(mask.bit_count() for mask in self.outstanding.values())
        if missing:
            self._transfer.metrics.missing.inc(missing)
            log.warning("entries_missing", num_entries=missing, num_blocks=len(self.outstanding))

    async def _fetch(self, pool: Pool, sources: Sequence[Source], wait_s: float, deadline: Deadline) -> None:
        await self._stream_until_hurried(pool, sources, wait_s, deadline)
        if self.outstanding and (self._hurry.is_set() or self._met_corruption):
            await self._stream(pool, sources, 0.0, deadline, doubted=self._met_corruption)

    async def _stream_until_hurried(
        self, pool: Pool, sources: Sequence[Source], wait_s: float, deadline: Deadline
    ) -> None:
        stream = asyncio.create_task(self._stream(pool, sources, wait_s, deadline), name="fetch stream")
        hurry = asyncio.create_task(self._hurry.wait(), name="fetch hurry")
        try:
            await asyncio.wait({stream, hurry}, return_when=asyncio.FIRST_COMPLETED)
            if stream.done():
                await stream
        finally:
            await end_all(stream, hurry)  # nothing is written to the caller's pages afterwards

    async def _stream(
        self, pool: Pool, sources: Sequence[Source], wait_s: float, deadline: Deadline, *, doubted: bool = False
    ) -> None:
        blocks = sorted(self.outstanding)
        wanted = [BlockEntries(self._keys[block], self.outstanding[block]) for block in blocks]
        self._asked, self._taken = dict(self.outstanding), set()
        stream = pool.fetch(
            self._transfer.layout, wanted, reindexed(sources, blocks), wait_s, deadline, doubted=doubted
        )
        try:
            async with (
                aclosing(stream),  # not before all has landed: it lends the payloads
                aclosing(in_order(gathered(stream, MAX_AHEAD_BYTES, wanted), self._landed, MAX_LANDING)) as landed,
            ):
                async for num_frames, entries in landed:
                    self._count_landed(num_frames, entries)
        except DeadlineExceeded:
            raise
        except PrfaasError as error:
            log.warning("fetch_failed", pool=pool.address, error=str(error), code=error.code)

    async def _landed(self, together: Sequence[Arrived]) -> tuple[int, list[tuple[int, int]]]:
        """Land what came together. Return how many frames it had, and which (block, layer) of them have landed."""
        if corrupt := [layers for arrived in together for _, layers in arrived.corrupt]:
            self._count_corrupt(sum(map(int.bit_count, corrupt)))
        frames = [frame for arrived in together for frame in arrived.frames]
        if not frames:
            return 0, []
        with self._transfer.landing.moving():
            landed = await self._transfer.copier.run(partial(self._write, frames))
        self._transfer.landing.moved(sum(self._transfer.layout.entry_bytes(layer) for _, layer in landed))
        return len(frames), landed

    def _count_landed(self, num_frames: int, landed: Sequence[tuple[int, int]]) -> None:
        for block, layer in landed:
            left = self.outstanding[block] & ~(1 << layer)
            if left:
                self.outstanding[block] = left
            else:
                del self.outstanding[block]
            self._left_in_layer[layer] -= 1
        self._transfer.metrics.landed.inc(len(landed))
        if len(landed) < num_frames:
            self._count_corrupt(num_frames - len(landed))
        if landed:
            if self._marks is not None:
                self._marks.note({layer for _, layer in landed})
            self._on_landed()

    def _count_corrupt(self, num_entries: int) -> None:
        self._met_corruption = True
        self._transfer.metrics.corrupt.inc(num_entries)

    def _write(self, frames: list[Frame]) -> list[tuple[int, int]]:
        """Check, decode and write frames; runs in the copier thread. Return the (block, layer) pairs that landed.

        Payloads may lie in memory that a pool writes, too. They are read twice, to be verified and to be copied, and
        stay what they are in between: the stream's hold on them outlasts this call.
        """
        landed = self._land_raw([frame for frame in frames if frame.codec is _RAW])
        return landed + self._land_encoded([frame for frame in frames if frame.codec is not _RAW])

    def _land_raw(self, frames: Sequence[Frame]) -> list[tuple[int, int]]:
        """Verify and write frames whose payloads are the entries themselves."""
        blocks_of = cache(self._transfer.kv.blocks_of)  # a message has many entries of a layer
        sealed, arrivals, entries = [], [], []
        for frame in frames:
            entry = self._wanted(frame)
            if entry is not None and not self._is_entry(frame):
                self._taken.discard(entry)
                entry = None
            if entry is None:
                _refuse(frame, "not an entry that was asked for")
                continue
            sealed.append(frame)
            entries.append(entry)
            arrivals.append(self._arrival(entry, frame.payload, blocks_of))
        checksums = [frame.checksum for frame in sealed]
        transfer = self._transfer
        intact = transfer.stager.land_sealed(arrivals, headers_of(sealed), checksums, transfer.digests)
        for frame, entry, passed in zip(sealed, entries, intact, strict=True):
            if not passed:
                self._taken.discard(entry)
                _refuse(frame, "its checksum does not match")
        return list(compress(entries, intact))

    def _land_encoded(self, frames: Sequence[Frame]) -> list[tuple[int, int]]:
        """Verify, decode and write other frames."""
        blocks_of = cache(self._transfer.kv.blocks_of)
        arrivals, entries = [], []
        for frame, raw in zip(frames, self._transfer.codecs.map(self._opened, frames), strict=True):
            if raw is not None and (entry := self._wanted(frame)) is not None:
                entries.append(entry)
                arrivals.append(self._arrival(entry, raw, blocks_of))
        self._transfer.stager.land(arrivals)
        return entries

    def _wanted(self, frame: Frame) -> tuple[int, int] | None:
        """Return which (block, layer) a frame says it is, and take it, if it is asked for and not taken yet."""
        block, layer = self._block_of.get(frame.key), frame.layer
        if block is None or layer < 0 or not self._asked[block] >> layer & 1 or (block, layer) in self._taken:
            return None
        self._taken.add((block, layer))
        return block, layer

    def _is_entry(self, frame: Frame) -> bool:
        """Return whether a frame in the codec `RAW`, of a layer that the model has, can hold an entry of it."""
        num_bytes = self._transfer.layout.entry_bytes(frame.layer)
        return frame.fidelity is _LOSSLESS and len(frame.payload) == frame.raw_bytes == num_bytes

    def _arrival(self, entry: tuple[int, int], raw: Payload, blocks_of: Callable[[int], Tensor]) -> Arrival:
        block, layer = entry
        return Arrival(raw, blocks_of(layer), self._transfer.kv.block_number(layer, self._reservation, block))

    def _opened(self, frame: Frame) -> Payload | None:
        """Return an entry's bytes, or None when they cannot be used; runs in any thread."""
        try:
            if frame.key not in self._block_of:
                raise CorruptFrame("an entry that nobody asked for")
            return open_frame(frame, self._transfer.layout.entry_shape(frame.layer), self._at_least)
        except (CorruptFrame, IndexError) as error:
            _refuse(frame, repr(error))
            return None


def _refuse(frame: Frame, reason: str) -> None:
    log.warning("frame_corrupt", layer=frame.layer, key=frame.key.hex()[:12], error=reason)
