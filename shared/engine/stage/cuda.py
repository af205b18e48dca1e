"""Pages in a GPU's memory: copies over side streams, through pinned memory or from and to registered memory."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, compress
from typing import NamedTuple

import numpy as np
import torch

from shared.engine.stage.copies import queue_copies
from shared.engine.stage.registered import MemoryRun, RegisteredMemory
from shared.engine.stage.stager import Arrival, Departure, Digests, Mark, Stager, layers
from shared.kv.codec import Payload

PIECE_BYTES = 16 * 1024 * 1024
"""What one copy to the host takes along: enough to run at the bus's speed, little enough to be ready soon."""
NUM_PIECES = 2
"""Copies of one reader that may be under way at once."""


class CudaStager(Stager):
    """Copies on two streams of its own, one each way.

    Outwards, entries are gathered into pieces on the device, so that a copy is long enough for the bus. It waits for
    the mark of its layer and for nothing that the model computes after it. `NUM_PIECES` bound what a reader that falls
    behind has under way; the rest stays in the pages. Memory of `memory` is copied from and to directly; all other
    goes through pinned memory of PyTorch's host allocator.
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
        for first, end in _pieces(blocks, len(numbers)):
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
                for first, end in _pieces(blocks, len(numbers)):
                    placing = self._place(blocks, numbers[first:end], slots[first:end])
                    under_way.append((placing, found, headers[first:end], slots[first:end]))
                    if len(under_way) == NUM_PIECES:
                        finish()
            while under_way:
                finish()
        finally:
            for placing, *_ in under_way:
                placing.copied.synchronize()
        return digests

    def land(self, arrivals: Sequence[Arrival]) -> None:
        self._land(arrivals, lambda: [True] * len(arrivals))

    def land_sealed(
        self, arrivals: Sequence[Arrival], headers: Sequence[bytes], checksums: Sequence[int], digest: Digests
    ) -> list[bool]:
        """Digest entries on the host while they are copied to the device; what is intact goes from there to pages."""
        raws = [arrival.raw for arrival in arrivals]
        return self._land(arrivals, lambda: [a == b for a, b in zip(digest(headers, raws), checksums, strict=True)])

    def _land(self, arrivals: Sequence[Arrival], check: Callable[[], list[bool]]) -> list[bool]:
        """Land the arrivals that `check` finds intact. It runs while all are copied to the device."""
        if not arrivals:
            return []
        with torch.cuda.stream(self._inwards):
            arrived, held = self._brought([arrival.raw for arrival in arrivals])
            try:
                intact = check()
                start = 0
                for first, end in layers(arrivals):
                    size = sum(len(arrival.raw) for arrival in arrivals[first:end])
                    self._write(arrivals[first:end], intact[first:end], arrived[start : start + size])
                    start += size
            finally:
                landed = _event()
                landed.record(self._inwards)
                landed.synchronize()
                del held  # read until then
        return intact

    def _brought(self, raws: Sequence[Payload]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Queue copies of payloads to the device. Return where they arrive, side by side, and what is read for it."""
        runs = self._memory.runs(raws)
        held = {run.first: _joined(raws[run.first : run.end]) for run in runs if run.address is None}
        arrived = torch.empty(sum(run.num_bytes for run in runs), dtype=torch.uint8, device=self._device)
        sources = [held[run.first].data_ptr() if run.address is None else run.address for run in runs]
        queue_copies(_side_by_side(arrived, runs), sources, [run.num_bytes for run in runs], self._inwards)
        return arrived, list(held.values())

    def _write(self, arrivals: Sequence[Arrival], intact: Sequence[bool], arrived: torch.Tensor) -> None:
        """Queue the writing of intact entries of one layer, which have arrived side by side, to its blocks."""
        blocks, numbers = arrivals[0].blocks, [arrival.number for arrival in arrivals]
        entries = arrived.view(blocks.dtype).view(len(numbers), len(blocks), *blocks.shape[2:])
        if not all(intact):
            for number, entry in compress(zip(numbers, entries, strict=True), intact):
                blocks[:, number].copy_(entry, non_blocking=True)
        elif (run := _run(numbers)) is not None:
            blocks[:, run.start : run.stop].copy_(entries.transpose(0, 1), non_blocking=True)
        else:
            blocks.index_copy_(1, _on_device(numbers, self._device), entries.transpose(0, 1))

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
        """Queue a piece's copies into slots, or into pinned memory for those that are not registered."""
        runs = self._memory.runs(slots)
        pinned = {
            run.first: torch.empty(run.num_bytes, dtype=torch.uint8, pin_memory=True)
            for run in runs
            if run.address is None
        }
        with torch.cuda.stream(self._outwards):
            gathered = self._gathered(blocks, numbers)
            targets = [pinned[run.first].data_ptr() if run.address is None else run.address for run in runs]
            queue_copies(targets, _side_by_side(gathered, runs), [run.num_bytes for run in runs], self._outwards)
            copied = _event()
            copied.record(self._outwards)
        staged = [(pinned[run.first], slots[run.first : run.end]) for run in runs if run.address is None]
        return _Placing(staged, copied)

    def _gathered(self, blocks: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        """Queue the gathering of entries on the device, the parts of an entry side by side; return their bytes."""
        if (run := _run(numbers)) is not None:
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

    staged: list[tuple[torch.Tensor, Sequence[memoryview]]]
    copied: torch.cuda.Event

    def finish(self) -> None:
        self.copied.synchronize()
        for pinned, slots in self.staged:
            host, start = pinned.numpy().data, 0
            for slot in slots:
                slot[:] = host[start : start + len(slot)]
                start += len(slot)


def _pieces(blocks: torch.Tensor, count: int) -> Iterator[tuple[int, int]]:
    at_once = max(1, PIECE_BYTES // _entry_bytes(blocks))
    for first in range(0, count, at_once):
        yield first, min(count, first + at_once)


def _joined(raws: Sequence[Payload]) -> torch.Tensor:
    """Return payloads side by side in pinned memory."""
    host = torch.empty(sum(map(len, raws)), dtype=torch.uint8, pin_memory=True)
    np.concatenate([np.frombuffer(raw, dtype=np.uint8) for raw in raws], out=host.numpy())
    return host


def _side_by_side(memory: torch.Tensor, runs: Sequence[MemoryRun]) -> list[int]:
    """Return the addresses of runs that lie one after the other in `memory`."""
    return list(accumulate((run.num_bytes for run in runs[:-1]), initial=memory.data_ptr()))


def _run(numbers: Sequence[int]) -> range | None:
    """Return numbers as a range, if each is one more than that before it."""
    run = range(numbers[0], numbers[0] + len(numbers))
    return run if list(numbers) == list(run) else None


def _on_device(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return numbers on the device. The current stream brings them in its order, and nobody waits for it."""
    return torch.tensor(numbers, pin_memory=True).to(device, non_blocking=True)


def _entry_bytes(blocks: torch.Tensor) -> int:
    return blocks[:, 0].numel() * blocks.element_size()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
