"""Entries on their way to the host: what comes out is what was in the pages when their mark was reached."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch

from shared.engine.stage import NUM_SLOTS, CudaStager, EntryView, HostStager, Stager, select_stager
from shared.kv.tensors import entry_to_bytes

ENTRY_BYTES = 2 * 4 * 2 * 8 * 4


def entries(count: int) -> list[EntryView]:
    return [EntryView(torch.full((4, 2, 8), float(i)), torch.full((4, 2, 8), -float(i))) for i in range(count)]


class FakeStream:
    """Runs nothing until an event on it is waited for: whoever reads too early sees what was there before."""

    current: ClassVar["FakeStream"]

    def __init__(self, device: object = None) -> None:
        self.queue: list[Callable[[], object]] = []
        self.num_done = 0

    def wait_event(self, event: "FakeEvent") -> None:
        self.queue.append(event.synchronize)

    def run_until(self, end: int) -> None:
        while self.num_done < end:
            self.num_done += 1
            self.queue[self.num_done - 1]()


class FakeEvent:
    def __init__(self) -> None:
        self.stream: FakeStream | None = None
        self.end = 0

    def record(self, stream: FakeStream) -> None:
        self.stream, self.end = stream, len(stream.queue)

    def synchronize(self) -> None:
        if self.stream is not None:
            self.stream.run_until(self.end)


class PinnedTensor(torch.Tensor):
    """Its asynchronous copies go to the stream in hand."""

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> "PinnedTensor":
        assert non_blocking, "a copy that waits would hold the copier up"
        target = self.as_subclass(torch.Tensor)
        FakeStream.current.queue.append(lambda: target.copy_(source))
        return self


@pytest.fixture
def compute(monkeypatch: pytest.MonkeyPatch) -> FakeStream:
    """Put the fakes in CUDA's place; return the stream that the model computes on."""
    stream, empty = FakeStream(), torch.empty

    @contextmanager
    def on(other: FakeStream) -> Iterator[None]:
        before, FakeStream.current = FakeStream.current, other
        yield
        FakeStream.current = before

    def pinned(*shape: Any, pin_memory: bool, **options: Any) -> torch.Tensor:
        assert pin_memory
        return empty(*shape, **options).as_subclass(PinnedTensor)

    FakeStream.current = stream
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch, "empty", pinned)
    return stream


def test_on_the_host_bytes_come_straight_from_the_pages() -> None:
    stager: Stager = HostStager()
    mark = stager.mark()
    stager.reached(mark)
    some = entries(3)
    assert list(stager.stage(mark, iter(some))) == [entry_to_bytes(*entry) for entry in some]


def test_the_device_decides() -> None:
    assert isinstance(select_stager(torch.device("cpu"), 1), HostStager)


@pytest.mark.parametrize("count", [0, 1, NUM_SLOTS - 1, NUM_SLOTS, NUM_SLOTS + 1, 3 * NUM_SLOTS])
def test_a_ring_of_pinned_buffers_gives_all_entries_in_order(compute: FakeStream, count: int) -> None:
    stager = CudaStager(torch.device("cuda"), ENTRY_BYTES)
    some = entries(count)
    assert list(stager.stage(stager.mark(), iter(some))) == [entry_to_bytes(*entry) for entry in some]


def test_a_copy_waits_for_its_mark_and_not_for_what_is_computed_after_it(compute: FakeStream) -> None:
    stager = CudaStager(torch.device("cuda"), ENTRY_BYTES)
    [entry] = some = entries(1)
    compute.queue.append(lambda: entry.k.fill_(7))
    mark = stager.mark()
    compute.queue.append(lambda: entry.k.fill_(8))
    [raw] = stager.stage(mark, some)
    assert compute.num_done == 1
    assert raw == entry_to_bytes(torch.full((4, 2, 8), 7.0), entry.v)


def test_copies_run_ahead_of_the_reader_and_a_reader_may_stop(compute: FakeStream) -> None:
    stager = CudaStager(torch.device("cuda"), ENTRY_BYTES)
    taken: list[int] = []

    def watched(some: list[EntryView]) -> Iterator[EntryView]:
        for i, entry in enumerate(some):
            taken.append(i)
            yield entry

    some = entries(NUM_SLOTS + 5)
    reading = stager.stage(stager.mark(), watched(some))
    assert next(reading) == entry_to_bytes(*some[0])
    assert len(taken) == NUM_SLOTS
    assert isinstance(reading, Iterator)
    del reading
    later = entries(NUM_SLOTS + 1)[::-1]
    assert list(stager.stage(stager.mark(), later)) == [entry_to_bytes(*entry) for entry in later]
