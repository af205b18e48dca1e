"""KV between the device's pages and bytes on the host: direct on the CPU, over side streams on a GPU."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from shared.kv.codec import Payload
from shared.kv.tensors import entry_rows

PIECE_BYTES = 16 * 1024 * 1024
"""What one copy to the host takes along: enough to run at the bus's speed, little enough to be ready soon."""
NUM_PIECES = 2
"""Copies of one reader that may be under way at once."""


Mark: TypeAlias = torch.cuda.Event | None
"""A point in the device's work; None: everything up to it is complete already."""


class Arrival(NamedTuple):
    """An entry's bytes, part by part, and where they go."""

    raw: Payload
    blocks: torch.Tensor  # of its layer, as `PagedKv.blocks_of` returns them; the same object for neighbours is quicker
    number: int


class Stager(ABC):
    """Moves entries out of pages and into pages while the model goes on computing with others.

    `mark` and `reached` belong to the thread that computes, `stage` and `land` to one other thread.
    """

    @abstractmethod
    def mark(self) -> Mark:
        """Return a mark that is reached when everything submitted so far has been computed."""

    @abstractmethod
    def reached(self, mark: Mark) -> None:
        """Block until a mark is reached."""

    @abstractmethod
    def stage(self, mark: Mark, blocks: torch.Tensor, numbers: Sequence[int]) -> Iterator[Payload]:
        """Yield the bytes of some of a layer's blocks, part by part, as they are once `mark` is reached.

        `blocks` is what `PagedKv.blocks_of` returns, `numbers` say which. The iterator may be closed early. What it
        yields is the caller's for as long as it likes; a view keeps up to `PIECE_BYTES` of host memory.
        """

    @abstractmethod
    def land(self, arrivals: Sequence[Arrival]) -> None:
        """Write entries into pages that nothing submitted reads or writes. What is submitted afterwards finds them."""


class HostStager(Stager):
    """Pages in host memory: bytes are read and written in place, and a layer that has returned is complete."""

    def mark(self) -> None:
        return None

    def reached(self, mark: Mark) -> None:
        return None

    def stage(self, mark: Mark, blocks: torch.Tensor, numbers: Sequence[int]) -> Iterator[Payload]:
        rows = entry_rows(blocks)
        for number in numbers:
            yield rows[:, number].tobytes()

    def land(self, arrivals: Sequence[Arrival]) -> None:
        rows, of = np.empty(0, dtype=np.uint8), None
        for raw, blocks, number in arrivals:
            if blocks is not of:
                rows, of = entry_rows(blocks), blocks
            rows[:, number] = np.frombuffer(raw, dtype=np.uint8).reshape(len(rows), -1)


class CudaStager(Stager):
    """Copies on two streams of its own, one each way, through pinned memory of PyTorch's host allocator.

    Outwards, entries are gathered into pieces on the device, so that a copy is long enough for the bus. It waits for
    the mark of its layer and for nothing that the model computes after it. `NUM_PIECES` bound what a reader that falls
    behind has under way; the rest stays in the pages.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
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

    def stage(self, mark: Mark, blocks: torch.Tensor, numbers: Sequence[int]) -> Iterator[Payload]:
        if mark is not None:
            self._outwards.wait_event(mark)
        at_once = max(1, PIECE_BYTES // _entry_bytes(blocks))
        under_way: deque[_Piece] = deque()
        for first in range(0, len(numbers), at_once):
            under_way.append(self._copy(blocks, numbers[first : first + at_once]))
            if len(under_way) == NUM_PIECES:
                yield from under_way.popleft().entries()
        while under_way:
            yield from under_way.popleft().entries()

    def land(self, arrivals: Sequence[Arrival]) -> None:
        if not arrivals:
            return
        host = torch.empty(sum(len(arrival.raw) for arrival in arrivals), dtype=torch.uint8, pin_memory=True)
        np.concatenate([np.frombuffer(arrival.raw, dtype=np.uint8) for arrival in arrivals], out=host.numpy())
        with torch.cuda.stream(self._inwards):
            arrived = torch.empty(host.numel(), dtype=torch.uint8, device=self._device)
            arrived.copy_(host, non_blocking=True)
            start = 0
            for blocks, part in _adjacent(arrivals):
                size = len(part) * _entry_bytes(blocks)
                target = blocks[:, part.start : part.stop].transpose(0, 1)
                source = arrived[start : start + size].view(blocks.dtype).view(target.shape)
                target.copy_(source, non_blocking=True)
                start += size
            landed = _event()
            landed.record(self._inwards)
        landed.synchronize()

    def _copy(self, blocks: torch.Tensor, numbers: Sequence[int]) -> "_Piece":
        """Queue a piece's copy. The stream runs copies in order, also those of a closed `stage`."""
        size = _entry_bytes(blocks)
        run = range(numbers[0], numbers[0] + len(numbers))
        with torch.cuda.stream(self._outwards):
            if list(numbers) == list(run):
                chosen = blocks[:, run.start : run.stop]
            else:
                chosen = blocks.index_select(1, torch.tensor(numbers, device=blocks.device))
            entries = chosen.transpose(0, 1)  # the parts of an entry side by side
            gathered = torch.empty(entries.shape, dtype=blocks.dtype, device=self._device)
            gathered.copy_(entries, non_blocking=True)
            host = torch.empty(len(numbers) * size, dtype=torch.uint8, pin_memory=True)
            host.copy_(gathered.view(-1).view(torch.uint8), non_blocking=True)
            copied = _event()
            copied.record(self._outwards)
        return _Piece(host, size, copied)


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


def _entry_bytes(blocks: torch.Tensor) -> int:
    return blocks[:, 0].numel() * blocks.element_size()


def _adjacent(arrivals: Sequence[Arrival]) -> Iterator[tuple[torch.Tensor, range]]:
    """Join arrivals that follow one another in the same layer's blocks."""
    blocks, run = arrivals[0].blocks, range(arrivals[0].number, arrivals[0].number + 1)
    for _, others, number in arrivals[1:]:
        if others.data_ptr() == blocks.data_ptr() and number == run.stop:
            run = range(run.start, number + 1)
            continue
        yield blocks, run
        blocks, run = others, range(number, number + 1)
    yield blocks, run


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def select_stager(device: torch.device) -> Stager:
    """Return the stager for pages on `device`."""
    return CudaStager(device) if device.type == "cuda" else HostStager()
