"""KV from the device's pages to bytes on the host, behind one interface: direct on the CPU, a side stream on a GPU."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

import torch

from shared.kv.tensors import entry_to_bytes

NUM_SLOTS = 8
"""Entries whose copies may be under way at once: each takes a pinned buffer of one entry's bytes."""


Mark: TypeAlias = torch.cuda.Event | None
"""A point in the device's work; None: everything up to it is complete already."""


class EntryView(NamedTuple):
    """Views of one entry's K and V in the pages, each `[block_tokens, num_kv_heads, head_dim]`, contiguous."""

    k: torch.Tensor
    v: torch.Tensor


class Stager(ABC):
    """Reads entries out of pages while the model goes on computing others. Changes no page.

    `mark` and `reached` belong to the thread that computes, `stage` to one other thread.
    """

    @abstractmethod
    def mark(self) -> Mark:
        """Return a mark that is reached when everything submitted so far has been computed."""

    @abstractmethod
    def reached(self, mark: Mark) -> None:
        """Block until a mark is reached."""

    @abstractmethod
    def stage(self, mark: Mark, entries: Iterable[EntryView]) -> Iterator[bytes]:
        """Yield the bytes of each entry, K then V, as they are once `mark` is reached. May be closed early."""


class HostStager(Stager):
    """Pages in host memory: an entry's bytes are read in place, and a layer that has returned is complete."""

    def mark(self) -> None:
        return None

    def reached(self, mark: Mark) -> None:
        return None

    def stage(self, mark: Mark, entries: Iterable[EntryView]) -> Iterator[bytes]:
        for entry in entries:
            yield entry_to_bytes(entry.k, entry.v)


class CudaStager(Stager):
    """Copies entries on a stream of its own into a ring of pinned buffers, several ahead of the one that is read.

    A copy waits for the mark of its layer and for nothing that the model computes after it. The ring bounds what is
    under way to `NUM_SLOTS` entries: a reader that falls behind leaves the rest in the pages.

    Written to the documentation of PyTorch: tests run it over a fake of its streams, no GPU has run it yet.
    """

    def __init__(self, device: torch.device, max_entry_bytes: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slots = [torch.empty(max_entry_bytes, dtype=torch.uint8, pin_memory=True) for _ in range(NUM_SLOTS)]
        self._copied = [_event() for _ in range(NUM_SLOTS)]

    def mark(self) -> torch.cuda.Event:
        event = _event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def reached(self, mark: Mark) -> None:
        if mark is not None:
            mark.synchronize()

    def stage(self, mark: Mark, entries: Iterable[EntryView]) -> Iterator[bytes]:
        if mark is not None:
            self._stream.wait_event(mark)
        ahead = iter(entries)
        under_way: list[tuple[int, int]] = []  # slot and size, oldest first
        for slot, entry in zip(range(NUM_SLOTS), ahead, strict=False):
            under_way.append((slot, self._copy(entry, slot)))
        while under_way:
            slot, size = under_way.pop(0)
            self._copied[slot].synchronize()
            yield self._slots[slot][:size].numpy().tobytes()
            # On resumption the bytes are out of the slot, which can take the next entry.
            if (following := next(ahead, None)) is not None:
                under_way.append((slot, self._copy(following, slot)))

    def _copy(self, entry: EntryView, slot: int) -> int:
        """Queue one entry's copy; return its size. The stream runs copies in order, also those of a closed `stage`."""
        offset = 0
        with torch.cuda.stream(self._stream):
            for part in entry:
                raw = part.reshape(-1).view(torch.uint8)
                self._slots[slot][offset : offset + raw.numel()].copy_(raw, non_blocking=True)
                offset += raw.numel()
            self._copied[slot].record(self._stream)
        return offset


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def select_stager(device: torch.device, max_entry_bytes: int) -> Stager:
    """Return the stager for pages on `device`."""
    return CudaStager(device, max_entry_bytes) if device.type == "cuda" else HostStager()
