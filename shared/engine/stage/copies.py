"""Many copies between a device and the host, queued on a stream in one call.

A copy through PyTorch occupies the interpreter for longer than a bus takes to carry a part of an entry. A kernel that
gathers or scatters has to wait for its turn where other processes compute on the device.
"""

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared.kv.payloads import load_payload_kernels

Addresses = NDArray[np.int64]

COPY_TYPES = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
"""Of `cudaMemcpyAsync`: its status, then target, source, bytes, kind and stream."""
_BY_ADDRESS = 4  # cudaMemcpyDefault


def queue_copies(
    targets: Addresses, sources: Addresses, sizes: NDArray[np.int64], stream: torch.cuda.Stream, copy: Any = None
) -> None:
    """Queue a copy of `sizes[i]` bytes from `sources[i]` to `targets[i]` for each i, addresses of host or device.

    The caller holds the memory until the stream is past. `copy` is a `ctypes` function of `COPY_TYPES`, CUDA's own
    unless given. Raises `RuntimeError` when a copy is refused: those before it are under way.
    """
    if copy is None:
        copy = _cuda_copy()
    library = load_payload_kernels()
    if library is None:
        for target, source, size in zip(targets.tolist(), sources.tolist(), sizes.tolist(), strict=True):
            _check(copy(target, source, size, _BY_ADDRESS, stream.cuda_stream))
        return
    assert len(targets) == len(sources) == len(sizes), "one of each"
    rows = np.stack((targets, sources, sizes)).astype(np.uint64)
    where = (row.ctypes.data for row in rows)
    _check(library.prfaas_queue_copies(ctypes.cast(copy, ctypes.c_void_p), *where, len(sizes), stream.cuda_stream))


@lru_cache(maxsize=1)
def _cuda_copy() -> Any:
    """Return `cudaMemcpyAsync` of the runtime that PyTorch has loaded."""
    runtime = ctypes.CDLL(f"libcudart.so.{str(torch.version.cuda).partition('.')[0]}")
    return ctypes.CFUNCTYPE(*COPY_TYPES)(("cudaMemcpyAsync", runtime))


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"CUDA refused a copy: error {status}")
