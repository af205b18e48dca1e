"""Which memory a device may copy from and to by itself, and in which runs."""

import threading
from collections.abc import Iterator

import pytest
import torch

from shared.engine.stage import RegisteredMemory, memory_for, registered
from shared.engine.stage.registered import NOWHERE
from shared.kv.payloads import addresses_of
from tests.support.waiting import LIMIT_S

PIECE = 1024


class Device:
    """What was registered; refuses pieces at some places, and may be held up."""

    def __init__(self) -> None:
        self.pieces: dict[int, int] = {}
        self.refused: set[int] = set()
        self.let = threading.Event()
        self.let.set()

    def register(self, address: int, num_bytes: int) -> None:
        assert self.let.wait(LIMIT_S)
        if address in self.refused:
            raise OSError("no more memory may be locked")
        assert address not in self.pieces
        self.pieces[address] = num_bytes

    def unregister(self, address: int) -> None:
        del self.pieces[address]


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def memory(device: Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[RegisteredMemory]:
    monkeypatch.setattr(registered, "REGISTERED_PIECE_BYTES", PIECE)
    memory = RegisteredMemory(device)
    yield memory
    device.let.set()
    memory.close()
    assert not device.pieces


def mapping(num_pieces: int) -> tuple[memoryview, int]:
    content = memoryview(bytearray(num_pieces * PIECE))
    return content, addresses_of([content])[0]


def test_whole_pieces_are_registered_once_as_the_mapping_grows(memory: RegisteredMemory, device: Device) -> None:
    content, address = mapping(4)
    for num_bytes in (0, PIECE - 1, PIECE, PIECE, 3 * PIECE + 5, 2 * PIECE):
        memory.grow(address, num_bytes)
    assert memory.settle(LIMIT_S) == 3 * PIECE
    assert device.pieces == {address + i * PIECE: PIECE for i in range(3)}
    memory.grow(address, 4 * PIECE)
    memory.settle(LIMIT_S)
    assert len(device.pieces) == 4
    del content


def test_what_lies_in_one_piece_may_be_copied_where_it_is(memory: RegisteredMemory) -> None:
    content, address = mapping(3)
    memory.grow(address, 2 * PIECE)
    memory.settle(LIMIT_S)
    half = PIECE // 2
    views = [content[i * half : (i + 1) * half] for i in range(6)]
    apart, across = memoryview(bytearray(half)), content[half : half + PIECE]
    found = memory.addresses([views[1].toreadonly(), views[0], apart, views[3], views[4], across, content[:PIECE]])
    assert found.tolist() == [address + half, address, NOWHERE, address + 3 * half, NOWHERE, NOWHERE, address]
    assert memory.addresses([]).tolist() == []


def test_what_cannot_be_registered_is_done_without_until_the_mapping_grows(
    memory: RegisteredMemory, device: Device
) -> None:
    content, address = mapping(3)
    device.refused = {address + PIECE}
    memory.grow(address, 2 * PIECE)
    assert memory.settle(LIMIT_S) == PIECE
    views = [content[i * PIECE : (i + 1) * PIECE] for i in range(3)]
    assert memory.addresses(views).tolist() == [address, NOWHERE, NOWHERE]
    device.refused.clear()
    memory.grow(address, 3 * PIECE)
    assert memory.settle(LIMIT_S) == 3 * PIECE


def test_a_mapping_that_is_forgotten_is_registered_no_more(memory: RegisteredMemory, device: Device) -> None:
    (first, address), (second, other) = mapping(4), mapping(1)
    memory.grow(address, PIECE)
    memory.grow(other, PIECE)
    memory.settle(LIMIT_S)
    device.let.clear()
    memory.grow(address, 4 * PIECE)  # the first of these is held up
    forgetting = threading.Thread(target=memory.forget, args=(address,))
    forgetting.start()
    device.let.set()
    forgetting.join(LIMIT_S)
    assert not forgetting.is_alive()
    assert list(device.pieces) == [other]
    assert memory.addresses([first[:8], second[:8]]).tolist() == [NOWHERE, other]
    memory.forget(address)


def test_a_mapping_may_be_forgotten_by_the_thread_that_registers(memory: RegisteredMemory, device: Device) -> None:
    """As when the garbage collector finds its last view there, in the midst of a mapping's registering."""
    (first, address), (second, other) = mapping(2), mapping(3)
    memory.grow(address, 2 * PIECE)
    memory.settle(LIMIT_S)
    register, forgotten = device.register, {other + PIECE: [address, other]}

    def collecting(start: int, num_bytes: int) -> None:
        register(start, num_bytes)
        for mapped in forgotten.get(start, []):
            memory.forget(mapped)

    device.register = collecting  # type: ignore[assignment,method-assign]
    memory.grow(other, 3 * PIECE)
    assert memory.settle(LIMIT_S) == 0
    assert not device.pieces
    forgotten.clear()
    memory.grow(other, 3 * PIECE)  # another mapping, at the same address
    assert memory.settle(LIMIT_S) == 3 * PIECE
    del first, second


def test_on_a_cpu_nothing_is_registered() -> None:
    memory = memory_for(torch.device("cpu"))
    content, address = mapping(1)
    memory.grow(address, 1 << 40)
    assert memory.addresses([content[:8], content[8:]]).tolist() == [NOWHERE, NOWHERE]
    assert memory.settle(LIMIT_S) == 0
    memory.forget(address)
    memory.close()
