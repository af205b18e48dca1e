"""Entries on their way to the host: what comes out is what was in the pages when their mark was reached."""

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import compress
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.engine.stage import (
    Arrival,
    CudaStager,
    Departure,
    HostStager,
    RegisteredMemory,
    Stager,
    cuda,
    registered,
    select_stager,
)
from shared.engine.stage.copies import Addresses
from shared.engine.stage.cuda import NUM_PIECES
from shared.kv.codec import Payload
from shared.kv.payloads import addresses_of, digests
from tests.support.entries import entry_bytes
from tests.support.waiting import LIMIT_S

ENTRY_BYTES = 2 * 4 * 2 * 8 * 4
PER_PIECE = 3


def blocks_of(count: int, num_parts: int = 2) -> torch.Tensor:
    """K and V of `count` blocks of 4 tokens: block i is full of i and of -i. One part: a latent."""
    numbers = torch.arange(max(1, count), dtype=torch.float32)
    return torch.stack((numbers, -numbers)[:num_parts])[..., None, None, None].repeat(1, 1, 4, 2, 8)


def entries(blocks: torch.Tensor, numbers: Iterable[int]) -> list[bytes]:
    return [entry_bytes(blocks[:, i]) for i in numbers]


class FakeStream:
    """Runs nothing until an event on it is waited for: whoever reads too early sees what was there before."""

    current: ClassVar["FakeStream"]

    def __init__(self, device: object = None, priority: int = 0) -> None:
        self.queue: list[Callable[[], object]] = []
        self.num_done = 0

    def wait_event(self, event: "FakeEvent") -> None:
        self.queue.append(event.synchronize)

    def synchronize(self) -> None:
        self.run_until(len(self.queue))

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

    def query(self) -> bool:
        return self.stream is None or self.stream.num_done >= self.end


class DeviceTensor(torch.Tensor):
    """What was made on a stream: filled when the stream gets there, like its copies to and from the host."""

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> "DeviceTensor":
        assert non_blocking, "a copy that waits would hold the copier up"
        target = self.as_subclass(torch.Tensor)
        FakeStream.current.queue.append(lambda: target.copy_(source.as_subclass(torch.Tensor)))
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

    def queue_copies(targets: Addresses, sources: Addresses, sizes: NDArray[np.int64], stream: FakeStream) -> None:
        stream.queue.append(lambda: [*map(ctypes.memmove, targets.tolist(), sources.tolist(), sizes.tolist())])

    def made(*shape: Any, pin_memory: bool = False, device: torch.device | None = None, **options: Any) -> torch.Tensor:
        assert pin_memory != (device is not None), "pageable memory would make copies wait"
        return empty(*shape, **options).as_subclass(DeviceTensor)

    FakeStream.current = stream
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch, "empty", made)
    monkeypatch.setattr(cuda, "queue_copies", queue_copies)
    monkeypatch.setattr(cuda, "_on_device", lambda numbers, _device: torch.tensor(numbers))
    monkeypatch.setattr(cuda, "PIECE_BYTES", PER_PIECE * ENTRY_BYTES)
    return stream


@pytest.mark.parametrize("num_parts", [1, 2])
def test_on_the_host_bytes_come_straight_from_the_pages(num_parts: int) -> None:
    stager: Stager = HostStager()
    mark = stager.mark()
    assert stager.is_reached(mark)
    stager.reached(mark)
    blocks = blocks_of(3, num_parts)
    assert list(stager.stage(mark, blocks, [2, 0])) == entries(blocks, [2, 0])


def test_the_device_decides() -> None:
    assert isinstance(select_stager(torch.device("cpu")), HostStager)


@pytest.mark.parametrize("count", [0, 1, PER_PIECE - 1, PER_PIECE, PER_PIECE + 1, 4 * PER_PIECE + 1])
@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("num_parts", [1, 2])
def test_pieces_give_all_entries_in_order(compute: FakeStream, count: int, step: int, num_parts: int) -> None:
    stager, blocks, numbers = CudaStager(torch.device("cuda")), blocks_of(count, num_parts), range(count)[::step]
    assert list(stager.stage(stager.mark(), blocks, numbers)) == entries(blocks, numbers)


def test_a_copy_waits_for_its_mark_and_not_for_what_is_computed_after_it(compute: FakeStream) -> None:
    stager, blocks = CudaStager(torch.device("cuda")), blocks_of(1)
    compute.queue.append(lambda: blocks[0].fill_(7))
    mark = stager.mark()
    compute.queue.append(lambda: blocks[0].fill_(8))
    assert (stager.is_reached(mark), stager.is_reached(None)) == (False, True)
    [raw] = stager.stage(mark, blocks, [0])
    assert stager.is_reached(mark)
    assert compute.num_done == 1
    assert raw == entry_bytes(torch.stack((torch.full((4, 2, 8), 7.0), blocks[1, 0])))


def test_copies_run_ahead_of_the_reader_and_a_reader_may_stop(compute: FakeStream) -> None:
    stager, blocks = CudaStager(torch.device("cuda")), blocks_of(PER_PIECE * NUM_PIECES + 5)
    outwards: Any = stager._outwards
    reading = stager.stage(None, blocks, range(blocks.shape[1]))
    assert next(reading) == entry_bytes(blocks[:, 0])
    assert len(outwards.queue) == 2 * NUM_PIECES  # gathered, then copied
    del reading
    assert list(stager.stage(stager.mark(), blocks, [3, 1])) == entries(blocks, [3, 1])


def landed(stager: Stager, target: torch.Tensor) -> None:
    source = blocks_of(6, len(target))
    numbers = [4, 0, 1, 2, 5]  # a run among others
    arrivals = [Arrival(raw, target, i) for raw, i in zip(entries(source, numbers), numbers, strict=True)]
    stager.land(arrivals)
    found = target.as_subclass(torch.Tensor)
    assert torch.equal(found[:, numbers], source[:, numbers])
    assert not found[:, 3].any()
    stager.land([])


@pytest.mark.parametrize("num_parts", [1, 2])
def test_entries_land_in_host_memory(num_parts: int) -> None:
    landed(HostStager(), torch.zeros(num_parts, 6, 4, 2, 8))


@pytest.mark.parametrize("num_parts", [1, 2])
def test_entries_have_landed_when_the_call_returns(compute: FakeStream, num_parts: int) -> None:
    compute.queue.append(lambda: pytest.fail("landing waits for nothing that is computed"))
    landed(CudaStager(torch.device("cuda")), torch.zeros(num_parts, 6, 4, 2, 8).as_subclass(DeviceTensor))


HEADERS = [bytes([i] * 40) for i in range(32)]


class NoDevice:
    """Registers nothing, and remembers what it was told."""

    def __init__(self) -> None:
        self.registered: list[tuple[int, int]] = []

    def register(self, address: int, num_bytes: int) -> None:
        self.registered.append((address, num_bytes))

    def unregister(self, address: int) -> None:
        self.registered = [piece for piece in self.registered if piece[0] != address]


def placed(stager: Stager, blocks: torch.Tensor, numbers: list[int], slots: list[memoryview], mark: Any = None) -> None:
    headers = HEADERS[: len(numbers)]
    wanted = entries(blocks, numbers)
    departure = Departure(mark, blocks, numbers, slots, headers)
    assert stager.place([departure], digests) == [digests(headers, wanted)]
    assert [bytes(slot) for slot in slots] == wanted


def slots_in(memory: memoryview, *places: int) -> list[memoryview]:
    return [memory[place * ENTRY_BYTES : (place + 1) * ENTRY_BYTES] for place in places]


@pytest.mark.parametrize("num_parts", [1, 2])
def test_entries_are_placed_in_slots_of_host_memory(num_parts: int) -> None:
    memory = memoryview(bytearray(16 * ENTRY_BYTES))
    slots = [slot[: num_parts * ENTRY_BYTES // 2] for slot in slots_in(memory, 3, 0, 7)]
    placed(HostStager(), blocks_of(6, num_parts), [4, 0, 5], slots)


@pytest.mark.parametrize("pieces", [0, 1, 2])
@pytest.mark.parametrize("places", [range(9), [0, 1, 2, 6, 5, 4, 3, 8, 7], [3], [*range(4, 12), 0]])
def test_entries_are_placed_in_slots_whether_these_are_registered_or_not(
    compute: FakeStream, monkeypatch: pytest.MonkeyPatch, pieces: int, places: Sequence[int]
) -> None:
    """Pieces are so small that there are runs over two of them, and slots behind the last one."""
    monkeypatch.setattr(registered, "REGISTERED_PIECE_BYTES", 4 * ENTRY_BYTES)
    memory, content = RegisteredMemory(NoDevice()), memoryview(bytearray(16 * ENTRY_BYTES))
    memory.grow(addresses_of([content])[0], pieces * 4 * ENTRY_BYTES)
    assert memory.settle(LIMIT_S) == pieces * 4 * ENTRY_BYTES
    stager, blocks = CudaStager(torch.device("cuda"), memory), blocks_of(16) + 1
    compute.queue.append(lambda: blocks[0, 3].fill_(77))
    mark = stager.mark()
    numbers = [15 - place for place in places]
    slots = slots_in(content, *places)
    [found] = stager.place([Departure(mark, blocks, numbers, slots, HEADERS[: len(slots)])], digests)
    assert [bytes(slot) for slot in slots] == entries(blocks, numbers)
    assert found == digests(HEADERS[: len(slots)], slots)
    target = torch.zeros_like(blocks).as_subclass(DeviceTensor)
    stager.land([Arrival(slot.toreadonly(), target, number) for slot, number in zip(slots, numbers, strict=True)])
    assert torch.equal(target.as_subclass(torch.Tensor)[:, numbers], blocks[:, numbers])
    landed_sealed(stager, torch.zeros_like(blocks).as_subclass(DeviceTensor), blocks, numbers, slots)
    memory.close()


def test_the_next_layer_is_copied_while_one_is_digested_and_no_layer_before_its_mark(compute: FakeStream) -> None:
    stager, layers = CudaStager(torch.device("cuda")), [blocks_of(2), blocks_of(2), blocks_of(2)]
    outwards: Any = stager._outwards
    departures, begun = [], []
    slots = slots_in(memoryview(bytearray(6 * ENTRY_BYTES)), *range(6))
    for layer, blocks in enumerate(layers):
        compute.queue.append(partial(blocks[0].fill_, 100 + layer))
        of_layer = slots[2 * layer : 2 * layer + 2]
        departures.append(Departure(stager.mark(), blocks, [0, 1], of_layer, HEADERS[2 * layer : 2 * layer + 2]))

    def digesting(headers: Sequence[bytes], payloads: Sequence[Payload]) -> list[int]:
        begun.append(len(outwards.queue) // 2)  # waited for a mark, copied
        return digests(headers, payloads)

    found = stager.place(departures, digesting)
    assert begun == [2, 3, 3]
    assert [bytes(slot) for slot in slots] == [raw for blocks in layers for raw in entries(blocks, [0, 1])]
    assert [digest for of_layer in found for digest in of_layer] == digests(HEADERS[:6], slots)
    assert stager.place([], digests) == []


def landed_sealed(
    stager: Stager, target: torch.Tensor, blocks: torch.Tensor, numbers: Sequence[int], slots: Sequence[memoryview]
) -> None:
    """Every third entry is not what was sealed."""
    arrivals = [Arrival(slot.toreadonly(), target, number) for slot, number in zip(slots, numbers, strict=True)]
    headers = HEADERS[: len(slots)]
    checksums = [found ^ (i % 3 == 1) for i, found in enumerate(digests(headers, slots))]
    wanted = [i % 3 != 1 for i in range(len(slots))]
    assert stager.land_sealed(arrivals, headers, checksums, digests) == wanted
    good = list(compress(numbers, wanted))
    others = [number for number in range(blocks.shape[1]) if number not in good]
    found = target.as_subclass(torch.Tensor)
    assert torch.equal(found[:, good], blocks[:, good])
    assert not found[:, others].any()
    assert stager.land_sealed([], [], [], digests) == []


@pytest.mark.parametrize("num_parts", [1, 2])
def test_of_sealed_entries_only_the_intact_ones_land_in_host_memory(num_parts: int) -> None:
    blocks, numbers = blocks_of(9, num_parts) + 1, [4, 0, 1, 2, 5, 6, 7]
    slots = [memoryview(raw) for raw in entries(blocks, numbers)]
    landed_sealed(HostStager(), torch.zeros_like(blocks), blocks, numbers, slots)


def test_entries_of_several_layers_land_each_in_its_own() -> None:
    layers, targets = [blocks_of(4) + layer for layer in range(3)], [torch.zeros(2, 4, 4, 2, 8) for _ in range(3)]
    places = [(0, 1), (0, 2), (1, 0), (2, 3), (0, 3)]
    raws = [entry_bytes(layers[layer][:, i]) for layer, i in places]
    arrivals = [Arrival(raw, targets[layer], i) for raw, (layer, i) in zip(raws, places, strict=True)]
    HostStager().land(arrivals)
    for target, layer in zip(targets, range(3), strict=True):
        chosen = [i for of, i in places if of == layer]
        assert torch.equal(target[:, chosen], layers[layer][:, chosen])
    for target in targets:
        target.zero_()
    assert HostStager().land_sealed(arrivals, HEADERS[:5], digests(HEADERS[:5], raws), digests) == [True] * 5
    assert torch.equal(targets[2][:, 3], layers[2][:, 3])


def test_when_checking_fails_nothing_is_read_any_more(compute: FakeStream) -> None:
    stager, target = CudaStager(torch.device("cuda")), torch.zeros(2, 6, 4, 2, 8).as_subclass(DeviceTensor)
    inwards: Any = stager._inwards

    def failing(headers: Sequence[bytes], payloads: Sequence[Payload]) -> list[int]:
        if inwards.queue:  # the first piece is on its way
            raise ValueError("no digest")
        return digests(headers, payloads)

    arrivals = [Arrival(bytes(ENTRY_BYTES), target, i) for i in range(PER_PIECE + 1)]
    headers = HEADERS[: len(arrivals)]
    checksums = digests(headers, [arrival.raw for arrival in arrivals])
    with pytest.raises(ValueError, match="no digest"):
        stager.land_sealed(arrivals, headers, checksums, failing)
    assert inwards.num_done == len(inwards.queue) > 0


def test_when_a_piece_fails_nothing_is_written_any_more(compute: FakeStream) -> None:
    stager, blocks = CudaStager(torch.device("cuda")), blocks_of(PER_PIECE * 4)
    outwards: Any = stager._outwards

    def failing(headers: Sequence[bytes], payloads: Sequence[Payload]) -> list[int]:
        raise ValueError("no digest")

    slots = slots_in(memoryview(bytearray(PER_PIECE * 4 * ENTRY_BYTES)), *range(PER_PIECE * 4))
    with pytest.raises(ValueError, match="no digest"):
        stager.place([Departure(None, blocks, range(PER_PIECE * 4), slots, HEADERS[: PER_PIECE * 4])], failing)
    assert outwards.num_done == len(outwards.queue)


def test_when_a_copy_is_refused_nothing_is_written_any_more(
    compute: FakeStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the same piece before it are under way."""
    stager, blocks = CudaStager(torch.device("cuda")), blocks_of(PER_PIECE)
    outwards: Any = stager._outwards
    queue_copies = vars(cuda)["queue_copies"]

    def refusing(targets: Addresses, sources: Addresses, sizes: NDArray[np.int64], stream: Any) -> None:
        queue_copies(targets[:1], sources[:1], sizes[:1], stream)
        raise RuntimeError("refused")

    monkeypatch.setattr(cuda, "queue_copies", refusing)
    slots = slots_in(memoryview(bytearray(PER_PIECE * ENTRY_BYTES)), *range(PER_PIECE))
    with pytest.raises(RuntimeError, match="refused"):
        stager.place([Departure(None, blocks, range(PER_PIECE), slots, HEADERS[:PER_PIECE])], digests)
    assert outwards.num_done == len(outwards.queue) > 0
