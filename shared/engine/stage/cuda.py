"""Pages in a GPU's memory: copies over side streams, through pinned memory or from and to registered memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from shared.engine.stage.copies import Addresses, queue_copies
from shared.engine.stage.registered import NOWHERE, RegisteredMemory
from shared.engine.stage.stager import Arrival, Departure, Digests, Mark, Stager, layers
from shared.kv.codec import Payload

PIECE_BYTES = 16 * 1024 * 1024
"""What one copy to the host takes along: enough to run at the bus's speed, little enough to be ready soon."""
NUM_PIECES = 2
"""Copies of one reader that may be under way at once."""


class CudaStager(Stager):
    """Copies on two streams of its own, one each way.

    Between pages and slots the device's copy engines do all of it, part by part: a kernel would wait for its turn
    beside what other processes compute. What `stage` yields is gathered into pieces on the device, and copied as one.
    A copy waits for the mark of its layer and for nothing that the model computes after it. `NUM_PIECES` bound what a
    reader that falls behind has under way; the rest stays in the pages. Memory of `memory` is copied from and to
    directly; all other goes through pinned memory of PyTorch's host allocator.
    """

    def __init__(self, device: torch.device, memory: RegisteredMemory | None = None) -> None:
        self._device = device
        self._memory = memory or RegisteredMemory()
        # Before the model's next kernels, not after all of them: what gathers is short, and somebody waits for it.
        self._outwards = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._inwards = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]

    def mark(self) -> torch.cuda.Event:
        event = _event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def reached(self, mark: Mark) -> None:
        if mark is not None:
            mark.synchronize()

    def is_reached(self, mark: Mark) -> bool:
        return mark is None or bool(mark.query())  # type: ignore[no-untyped-call]

    def stage(self, mark: Mark, blocks: torch.Tensor, numbers: Sequence[int]) -> Iterator[Payload]:
        if mark is not None:
            self._outwards.wait_event(mark)
        under_way: deque[_Piece] = deque()
        for first, end in _pieces([_entry_bytes(blocks)] * len(numbers)):
            under_way.append(self._copy(blocks, numbers[first:end]))
            if len(under_way) == NUM_PIECES:
                yield from under_way.popleft().entries()
        while under_way:
            yield from under_way.popleft().entries()

    def place(self, departures: Sequence[Departure], digest: Digests) -> list[list[int]]:
        """Digest a piece while the next one is being copied, be it of the next layer."""
        under_way: deque[tuple[_Placing, list[int], Sequence[bytes], Sequence[memoryview]]] = deque()

        def finish() -> None:
            placing, found, headers, slots = under_way[0]
            placing.finish()
            under_way.popleft()
            found.extend(digest(headers, slots))

        digests: list[list[int]] = [[] for _ in departures]
        try:
            for found, (mark, blocks, numbers, slots, headers) in zip(digests, departures, strict=True):
                if mark is not None:
                    self._outwards.wait_event(mark)
                for first, end in _pieces([_entry_bytes(blocks)] * len(numbers)):
                    placing = self._place(blocks, numbers[first:end], slots[first:end])
                    under_way.append((placing, found, headers[first:end], slots[first:end]))
                    if len(under_way) == NUM_PIECES:
                        finish()
            while under_way:
                finish()
        except BaseException:
            self._outwards.synchronize()
            raise
        return digests

    def land(self, arrivals: Sequence[Arrival]) -> None:
        self._land(arrivals, lambda first, end: [True] * (end - first))

    def land_sealed(
        self, arrivals: Sequence[Arrival], headers: Sequence[bytes], checksums: Sequence[int], digest: Digests
    ) -> list[bool]:
        """Digest a piece on the host while the one before it is copied to its pages."""

        def check(first: int, end: int) -> list[bool]:
            found = digest(headers[first:end], [arrival.raw for arrival in arrivals[first:end]])
            return [a == b for a, b in zip(found, checksums[first:end], strict=True)]

        return self._land(arrivals, check)

    def _land(self, arrivals: Sequence[Arrival], check: Callable[[int, int], list[bool]]) -> list[bool]:
        """Land the arrivals that `check` finds intact, a piece at a time."""
        intact: list[bool] = []
        held: list[torch.Tensor | None] = []
        with torch.cuda.stream(self._inwards):
            try:
                for first, end in _pieces(len(arrival.raw) for arrival in arrivals):
                    intact += check(first, end)
                    held.append(self._bring(list(compress(arrivals[first:end], intact[first:end]))))
            finally:
                landed = _event()
                landed.record(self._inwards)
                landed.synchronize()
                del held  # read until then
        return intact

    def _bring(self, arrivals: Sequence[Arrival]) -> torch.Tensor | None:
        """Queue copies of entries to their pages, part by part; return what of them has to be held."""
        raws = [arrival.raw for arrival in arrivals]
        places, pinned, others = self._places(raws)
        if pinned is not None:
            np.concatenate([np.frombuffer(raws[i], np.uint8) for i in others], out=pinned.numpy())
        for first, end in layers(arrivals):
            blocks, numbers = arrivals[first].blocks, [arrival.number for arrival in arrivals[first:end]]
            queue_copies(*_parts_in_pages(blocks, numbers, places[first:end]), self._inwards)
        return pinned

    def _places(self, payloads: Sequence[Payload]) -> tuple[Addresses, torch.Tensor | None, list[int]]:
        """Return where each payload may be copied from or to: in place, or in pinned memory that is made here.

        There are those of which it says the numbers, side by side.
        """
        places = self._memory.addresses(payloads)
        others: list[int] = np.flatnonzero(places == NOWHERE).tolist()
        if not others:
            return places, None, []
        sizes = np.fromiter((len(payloads[i]) for i in others), np.int64, len(others))
        pinned = torch.empty(int(sizes.sum()), dtype=torch.uint8, pin_memory=True)
        places[others] = pinned.data_ptr() + np.cumsum(sizes) - sizes
        return places, pinned, others

    def _copy(self, blocks: torch.Tensor, numbers: Sequence[int]) -> "_Piece":
        """Queue a piece's copy. The stream runs copies in order, also those of a closed `stage`."""
        with torch.cuda.stream(self._outwards):
            gathered = self._gathered(blocks, numbers)
            host = torch.empty(gathered.numel(), dtype=torch.uint8, pin_memory=True)
            host.copy_(gathered, non_blocking=True)
            copied = _event()
            copied.record(self._outwards)
        return _Piece(host, _entry_bytes(blocks), copied)

    def _place(self, blocks: torch.Tensor, numbers: Sequence[int], slots: Sequence[memoryview]) -> "_Placing":
        """Queue copies of a piece's entries into slots, or into pinned memory for those that are not registered."""
        places, pinned, others = self._places(slots)
        with torch.cuda.stream(self._outwards):
            pages, inside, sizes = _parts_in_pages(blocks, numbers, places)
            queue_copies(inside, pages, sizes, self._outwards)
            copied = _event()
            copied.record(self._outwards)
        return _Placing(pinned, [slots[i] for i in others], copied)

    def _gathered(self, blocks: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        """Queue the gathering of entries on the device, the parts of an entry side by side; return their bytes."""
        run = range(numbers[0], numbers[0] + len(numbers))
        if list(numbers) == list(run):
            chosen = blocks[:, run.start : run.stop]
        else:
            chosen = blocks.index_select(1, _on_device(numbers, self._device))
        entries = chosen.transpose(0, 1)
        gathered = torch.empty(entries.shape, dtype=blocks.dtype, device=self._device)
        gathered.copy_(entries, non_blocking=True)
        return gathered.view(-1).view(torch.uint8)


class _Piece(NamedTuple):
    """Entries in pinned memory, one after the other, from `copied` on."""

    host: torch.Tensor
    entry_bytes: int
    copied: torch.cuda.Event

    def entries(self) -> Iterator[Payload]:
        self.copied.synchronize()
        host = self.host.numpy().data
        for start in range(0, len(host), self.entry_bytes):
            yield host[start : start + self.entry_bytes]


class _Placing(NamedTuple):
    """Entries on their way into slots: there from `copied` on, but for those that then lie in pinned memory."""

    pinned: torch.Tensor | None
    slots: Sequence[memoryview]
    copied: torch.cuda.Event

    def finish(self) -> None:
        self.copied.synchronize()
        if self.pinned is not None:
            host, start = self.pinned.numpy().data, 0
            for slot in self.slots:
                slot[:] = host[start : start + len(slot)]
                start += len(slot)


def _pieces(sizes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Divide entries of these sizes into ranges of at most `PIECE_BYTES`, or one entry."""
    first = end = num_bytes = 0
    for end, size in enumerate(sizes):
        if end > first and num_bytes + size > PIECE_BYTES:
            yield first, end
            first, num_bytes = end, 0
        num_bytes += size
    if num_bytes:
        yield first, end + 1


def _parts_in_pages(
    blocks: torch.Tensor, numbers: Sequence[int], places: Addresses
) -> tuple[Addresses, Addresses, NDArray[np.int64]]:
    """Return for each part of these blocks where it lies in the pages, and where in an entry at `places`; their sizes.

    `places` has an address for each of `numbers`.
    """
    num_parts, part_bytes = len(blocks), _entry_bytes(blocks) // len(blocks)
    assert blocks[0, 0].is_contiguous(), "a part lies in one piece"
    parts = np.arange(num_parts)
    part_stride, block_stride = (stride * blocks.element_size() for stride in blocks.stride()[:2])
    pages = blocks.data_ptr() + np.array(numbers, np.int64)[:, None] * block_stride + parts * part_stride
    inside = places[:, None] + parts * part_bytes
    return pages.ravel(), inside.ravel(), np.full(pages.size, part_bytes)


def _on_device(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return numbers on the device. The current stream brings them in its order, and nobody waits for it."""
    return torch.tensor(numbers, pin_memory=True).to(device, non_blocking=True)


def _entry_bytes(blocks: torch.Tensor) -> int:
    return blocks[:, 0].numel() * blocks.element_size()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
