"""KV between the device's pages and bytes on the host: direct on the CPU, over side streams on a GPU."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from shared.kv.codec import Payload
from shared.kv.tensors import entry_to_bytes, write_entry

PIECE_BYTES = 16 * 1024 * 1024
"""What one copy to the host takes along: enough to run at the bus's speed, little enough to be ready soon."""
NUM_PIECES = 2
"""Copies of one reader that may be under way at once."""


Mark: TypeAlias = torch.cuda.Event | None
"""A point in the device's work; None: everything up to it is complete already."""


class EntryView(NamedTuple):
    """Views of one entry's K and V in the pages, each `[block_tokens, num_kv_heads, head_dim]`, contiguous."""

    k: torch.Tensor
    v: torch.Tensor


class Arrival(NamedTuple):
    """An entry's bytes, K then V, and where they go."""

    raw: Payload
    view: EntryView


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
    def stage(self, mark: Mark, entries: Iterable[EntryView]) -> Iterator[Payload]:
        """Yield the bytes of each entry, K then V, as they are once `mark` is reached. May be closed early.

        What it yields is the caller's for as long as it likes; a view keeps up to `PIECE_BYTES` of host memory.
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

    def stage(self, mark: Mark, entries: Iterable[EntryView]) -> Iterator[Payload]:
        for entry in entries:
            yield entry_to_bytes(entry.k, entry.v)

    def land(self, arrivals: Sequence[Arrival]) -> None:
        for raw, view in arrivals:
            write_entry(raw, view.k, view.v)


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

    def stage(self, mark: Mark, entries: Iterable[EntryView]) -> Iterator[Payload]:
        if mark is not None:
            self._outwards.wait_event(mark)
        under_way: deque[_Piece] = deque()
        for piece in _pieces(entries):
            under_way.append(self._copy(piece))
            if len(under_way) == NUM_PIECES:
                yield from under_way.popleft().entries()
        while under_way:
            yield from under_way.popleft().entries()

    def land(self, arrivals: Sequence[Arrival]) -> None:
        if not arrivals:
            return
        targets = [part.reshape(-1) for arrival in arrivals for part in arrival.view]
        host = torch.empty(sum(len(arrival.raw) for arrival in arrivals), dtype=torch.uint8, pin_memory=True)
        np.concatenate([np.frombuffer(arrival.raw, dtype=np.uint8) for arrival in arrivals], out=host.numpy())
        with torch.cuda.stream(self._inwards):
            arrived = host.to(self._device, non_blocking=True).view(targets[0].dtype)
            torch._foreach_copy_(targets, torch.split(arrived, [target.numel() for target in targets]))
            landed = _event()
            landed.record(self._inwards)
        landed.synchronize()

    def _copy(self, piece: Sequence[EntryView]) -> "_Piece":
        """Queue a piece's copy. The stream runs copies in order, also those of a closed `stage`."""
        sizes = [sum(part.numel() * part.element_size() for part in entry) for entry in piece]
        with torch.cuda.stream(self._outwards):
            gathered = torch.cat([part.reshape(-1) for entry in piece for part in entry])
            host = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True)
            host.copy_(gathered.view(torch.uint8), non_blocking=True)
            copied = _event()
            copied.record(self._outwards)
        return _Piece(host, sizes, copied)


class _Piece(NamedTuple):
    """Entries in pinned memory, one after the other, from `copied` on."""

    host: torch.Tensor
    sizes: list[int]
    copied: torch.cuda.Event

    def entries(self) -> Iterator[Payload]:
        self.copied.synchronize()
        host, start = self.host.numpy().data, 0
        for size in self.sizes:
            yield host[start : start + size]
            start += size


def _pieces(entries: Iterable[EntryView]) -> Iterator[list[EntryView]]:
    piece: list[EntryView] = []
    size = 0
    for entry in entries:
        piece.append(entry)
        size += sum(part.numel() * part.element_size() for part in entry)
        if size >= PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def select_stager(device: torch.device) -> Stager:
    """Return the stager for pages on `device`."""
    return CudaStager(device) if device.type == "cuda" else HostStager()
