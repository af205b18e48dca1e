"""Entries on their way to the host: what comes out is what was in the pages when their mark was reached."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch

from shared.engine import stage
from shared.engine.stage import NUM_PIECES, Arrival, CudaStager, EntryView, HostStager, Stager, select_stager
from shared.kv.tensors import entry_to_bytes

ENTRY_BYTES = 2 * 4 * 2 * 8 * 4
PER_PIECE = 3


def entries(count: int) -> list[EntryView]:
    return [EntryView(torch.full((4, 2, 8), float(i)), torch.full((4, 2, 8), -float(i))) for i in range(count)]


class FakeStream:
    """Runs nothing until an event on it is waited for: whoever reads too early sees what was there before."""

    current: ClassVar["FakeStream"]

    def __init__(self, device: object = None, priority: int = 0) -> None:
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


class DeviceTensor(torch.Tensor):
    """What was made on a stream: filled when the stream gets there, like its copies to and from the host."""

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> "DeviceTensor":
        assert non_blocking, "a copy that waits would hold the copier up"
        target = self.as_subclass(torch.Tensor)
        FakeStream.current.queue.append(lambda: target.copy_(source.as_subclass(torch.Tensor)))
        return self

    def to(self, *args: Any, non_blocking: bool = False, **options: Any) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, pin_memory=True).copy_(self, non_blocking=non_blocking)


def deferred_cat(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    out = torch.empty(sum(part.numel() for part in parts), dtype=parts[0].dtype, pin_memory=True)
    plain = out.as_subclass(torch.Tensor)
    FakeStream.current.queue.append(lambda: CAT(list(parts), out=plain))
    return out


def deferred_foreach_copy(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    plain = [source.as_subclass(torch.Tensor) for source in sources]
    FakeStream.current.queue.append(lambda: FOREACH_COPY(list(targets), plain))


CAT, FOREACH_COPY = torch.cat, torch._foreach_copy_


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
        return empty(*shape, **options).as_subclass(DeviceTensor)

    FakeStream.current = stream
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch, "cat", deferred_cat)
    monkeypatch.setattr(torch, "_foreach_copy_", deferred_foreach_copy)
    monkeypatch.setattr(stage, "PIECE_BYTES", PER_PIECE * ENTRY_BYTES)
    return stream


def test_on_the_host_bytes_come_straight_from_the_pages() -> None:
    stager: Stager = HostStager()
    mark = stager.mark()
    stager.reached(mark)
    some = entries(3)
    assert list(stager.stage(mark, iter(some))) == [entry_to_bytes(*entry) for entry in some]


def test_the_device_decides() -> None:
    assert isinstance(select_stager(torch.device("cpu")), HostStager)


@pytest.mark.parametrize("count", [0, 1, PER_PIECE - 1, PER_PIECE, PER_PIECE + 1, 4 * PER_PIECE + 1])
def test_pieces_give_all_entries_in_order(compute: FakeStream, count: int) -> None:
    stager = CudaStager(torch.device("cuda"))
    some = entries(count)
    assert list(stager.stage(stager.mark(), iter(some))) == [entry_to_bytes(*entry) for entry in some]


def test_a_copy_waits_for_its_mark_and_not_for_what_is_computed_after_it(compute: FakeStream) -> None:
    stager = CudaStager(torch.device("cuda"))
    [entry] = some = entries(1)
    compute.queue.append(lambda: entry.k.fill_(7))
    mark = stager.mark()
    compute.queue.append(lambda: entry.k.fill_(8))
    [raw] = stager.stage(mark, some)
    assert compute.num_done == 1
    assert raw == entry_to_bytes(torch.full((4, 2, 8), 7.0), entry.v)


def test_copies_run_ahead_of_the_reader_and_a_reader_may_stop(compute: FakeStream) -> None:
    stager = CudaStager(torch.device("cuda"))
    taken: list[int] = []

    def watched(some: list[EntryView]) -> Iterator[EntryView]:
        for i, entry in enumerate(some):
            taken.append(i)
            yield entry

    some = entries(PER_PIECE * NUM_PIECES + 5)
    reading = stager.stage(stager.mark(), watched(some))
    assert next(reading) == entry_to_bytes(*some[0])
    assert len(taken) == PER_PIECE * NUM_PIECES
    del reading
    later = entries(PER_PIECE + 1)[::-1]
    assert list(stager.stage(stager.mark(), later)) == [entry_to_bytes(*entry) for entry in later]


def landed(stager: Stager) -> None:
    source, target = entries(5), [EntryView(torch.zeros(4, 2, 8), torch.zeros(4, 2, 8)) for _ in range(5)]
    stager.land([Arrival(entry_to_bytes(*s), t) for s, t in zip(source, target, strict=True)])
    for s, t in zip(source, target, strict=True):
        assert torch.equal(s.k, t.k)
        assert torch.equal(s.v, t.v)
    stager.land([])


def test_entries_land_in_host_memory() -> None:
    landed(HostStager())


def test_entries_have_landed_when_the_call_returns(compute: FakeStream) -> None:
    compute.queue.append(lambda: pytest.fail("landing waits for nothing that is computed"))
    landed(CudaStager(torch.device("cuda")))
