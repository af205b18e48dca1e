"""Many copies between a device and the host, queued on a stream in one call.

PyTorch takes some ten microseconds of the interpreter for a copy. Entries that do not lie side by side need one each,
and a bus carries an entry in less.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from shared.kv.payloads import load_payload_kernels

QueueCopy = Callable[[int, int, int, int], int]
"""Queues a copy: target and source address, bytes, stream; returns 0 or an error. A `ctypes` function."""

_ADDRESS, _SIZE = ctypes.c_uint64, ctypes.c_size_t
COPY_TYPES = (ctypes.c_int, _ADDRESS, _ADDRESS, _SIZE, ctypes.c_void_p)
"""Of a `QueueCopy`: its result, then its arguments."""


def queue_copies(
    targets: Sequence[int],
    sources: Sequence[int],
    sizes: Sequence[int],
    stream: torch.cuda.Stream,
    copy: Any = None,
) -> None:
    """Queue a copy of `sizes[i]` bytes from `sources[i]` to `targets[i]` for each i, addresses of host or device.

    The caller holds the memory until the stream is past. `copy` is the driver's own function unless given. Raises
    `RuntimeError` when the driver refuses a copy: those before it are under way.
    """
    if copy is None:
        copy = _driver_copy()
    library = load_payload_kernels()
    if library is None:
        for target, source, size in zip(targets, sources, sizes, strict=True):
            _check(copy(target, source, size, stream.cuda_stream))
        return
    at = np.array([targets, sources, sizes], np.uint64)
    count = at.shape[1]
    function = ctypes.cast(copy, ctypes.c_void_p)
    where = [row.ctypes.data for row in at]
    _check(library.prfaas_queue_copies(function, *where, count, stream.cuda_stream))


@lru_cache(maxsize=1)
def _driver_copy() -> Any:
    """Return `cuMemcpyAsync`, which tells from the addresses which way a copy goes."""
    driver = ctypes.CDLL("libcuda.so.1")
    return ctypes.CFUNCTYPE(*COPY_TYPES)(("cuMemcpyAsync", driver))


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"the CUDA driver refused a copy: error {status}")
