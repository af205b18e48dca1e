"""kernels.c, compiled for this machine at its first use. Without a C compiler NumPy does the same, slower."""

import ctypes
from functools import lru_cache
from pathlib import Path

from shared.kv.codec.spec import Payload
from shared.native import KernelsUnavailable, default_cache_dir, load_native

_SOURCES = (Path(__file__).with_name("kernels.c"),)
_FLAGS = ("-std=c11", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno")


@lru_cache(maxsize=1)
def load_kernels() -> ctypes.CDLL | None:
    """Return the library, or None where it cannot be had. Compiling takes a second."""
    try:
        return _declared(load_native("codec", _SOURCES, _FLAGS, default_cache_dir()))
    except KernelsUnavailable:
        return None


def readable(payload: Payload) -> bytes | int:
    """Return what ctypes takes for an address of these bytes, to read them: a copy where it takes nothing else."""
    if isinstance(payload, bytes):
        return payload
    return bytes(payload) if payload.readonly else ctypes.addressof(ctypes.c_char.from_buffer(payload))


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    at, number, share = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    library.prfaas_quantise.argtypes = (at, at, number, number, number, number, share, share, at, at)
    library.prfaas_restore.argtypes = (at, at, at, at, number, number, number, number, at)
    library.prfaas_restore.restype = None
    return library
