"""Memory that another process can map: sealed, there once touched, refused in time."""

import errno
import mmap
import os
import sys

import pytest

from shared import allocator
from shared.errors import Overloaded, SettingsError
from shared.lanes import mapping
from shared.lanes.mapping import MemoryRange
from tests.support.shared_memory import descriptors

NUM_BYTES = 4 << 20

needs_memfd = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memfd is of Linux")


@needs_memfd
def test_another_mapping_of_the_descriptor_has_the_same_bytes() -> None:
    shared = MemoryRange(NUM_BYTES, shared=True)
    assert shared.fd is not None
    other = mmap.mmap(shared.fd, NUM_BYTES)
    shared.part(8192, 5)[:] = 7
    assert other[8192:8197] == b"\x07" * 5
    other[8192] = 9
    assert shared.part(8192, 1)[0] == 9
    for _ in range(2):
        shared.close()
    assert shared.part(8192, 1)[0] == 9, "views outlive the descriptor"
    other.close()


@needs_memfd
def test_nobody_can_make_it_smaller_or_larger() -> None:
    shared = MemoryRange(NUM_BYTES, shared=True)
    assert shared.fd is not None
    for size in (0, NUM_BYTES - 1, 2 * NUM_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(shared.fd, size)
    shared.close()


@needs_memfd
@pytest.mark.parametrize("with_populate", [True, False])
def test_only_what_is_touched_takes_memory(with_populate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_populate:
        monkeypatch.setattr(mapping, "map_memory", lambda *_: errno.EINVAL)
    shared = MemoryRange(64 << 20, shared=True)
    assert shared.fd is not None
    assert os.fstat(shared.fd).st_blocks == 0
    shared.touch(8 << 20, NUM_BYTES)
    assert NUM_BYTES <= os.fstat(shared.fd).st_blocks * 512 <= NUM_BYTES + (4 << 20)
    shared.close()


def test_what_is_in_memory_stays_when_it_is_touched() -> None:
    own = MemoryRange(NUM_BYTES, shared=False)
    part = own.part(5000, 100)
    part[:] = 3
    own.touch(4096, 8192)
    assert bytes(part) == b"\x03" * 100
    assert own.fd is None


@pytest.mark.parametrize("shared", [True, False])
def test_memory_that_cannot_be_had_is_refused(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "map_memory", lambda *_: errno.ENOMEM)
    made = MemoryRange(NUM_BYTES, shared=shared)
    with pytest.raises(Overloaded, match="no memory"):
        made.touch(0, 4096)
    made.close()


def test_an_old_kernel_takes_private_memory_at_its_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_madvise", lambda: None)
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    own = MemoryRange(NUM_BYTES, shared=False)
    own.touch(0, NUM_BYTES)
    assert own.part(0, 3).tolist() == [0, 0, 0]


def test_without_memfd_the_memory_is_the_process_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(mapping, "_NORESERVE", 0)
    made = MemoryRange(NUM_BYTES, shared=True)
    assert made.fd is None
    made.part(0, 1)[0] = 1


@needs_memfd
def test_a_descriptor_is_closed_with_its_mapping() -> None:
    before = descriptors()
    for _ in range(5):
        MemoryRange(NUM_BYTES, shared=True)
        with pytest.raises(SettingsError):
            MemoryRange(1 << 62, shared=True)
    assert descriptors() == before
