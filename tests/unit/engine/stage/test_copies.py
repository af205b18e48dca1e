"""Many copies in one call: with a C compiler and without one, by a driver that is a function of ours."""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shared.engine.stage import copies
from shared.engine.stage.copies import COPY_TYPES, queue_copies
from shared.kv.payloads import addresses_of, load_payload_kernels

STREAM: Any = SimpleNamespace(cuda_stream=0x5EED)
REFUSED = 719
BY_ADDRESS = 4  # cudaMemcpyDefault

needs_compiler = pytest.mark.skipif(load_payload_kernels() is None, reason="needs a C compiler")


@pytest.fixture(params=[pytest.param("native", marks=needs_compiler), "each"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "each":
        monkeypatch.setattr(copies, "load_payload_kernels", lambda: None)


def driver(accepts: Callable[[int], bool] = lambda _size: True) -> Any:
    """Return a driver that copies at once what it accepts."""

    def copy(target: int, source: int, size: int, kind: int, stream: int) -> int:
        assert (kind, stream) == (BY_ADDRESS, STREAM.cuda_stream)
        if not accepts(size):
            return REFUSED
        ctypes.memmove(target, source, size)
        return 0

    return ctypes.CFUNCTYPE(*COPY_TYPES)(copy)


def queued(targets: list[int], sources: list[int], sizes: list[int], copy: Any) -> None:
    at = [np.array(row, np.int64) for row in (targets, sources, sizes)]
    queue_copies(at[0], at[1], at[2], STREAM, copy)


def test_each_goes_where_it_is_meant_to(way: None) -> None:
    source, target = memoryview(bytearray(range(200))), memoryview(bytearray(200))
    [here], [there] = addresses_of([source]), addresses_of([target])
    queued([there + 100, there, there + 50], [here, here + 60, here + 199], [40, 7, 1], driver())
    wanted = bytearray(200)
    wanted[100:140], wanted[:7], wanted[50] = source[:40], source[60:67], 199
    assert target == wanted


def test_none_are_no_call(way: None) -> None:
    queued([], [], [], driver(lambda _size: False))


def test_what_is_refused_is_told_and_nothing_after_it_is_queued(way: None) -> None:
    source, target = memoryview(bytearray(b"abcdef")), memoryview(bytearray(6))
    [here], [there] = addresses_of([source]), addresses_of([target])
    sizes = [1, 2, 3]
    with pytest.raises(RuntimeError, match=str(REFUSED)):
        queued([there, there + 1, there + 3], [here, here + 1, here + 3], sizes, driver(lambda n: n != 2))
    assert target == b"a" + bytes(5)
