"""batch.c, compiled for this machine at its first use. Without a C compiler NumPy and the xxhash package do the same,
entry by entry."""

from ctypes import POINTER, PyDLL, Structure, c_char_p, c_int, c_int64, c_uint32, c_void_p, py_object
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.native import KernelsUnavailable, default_cache_dir, load_native

_SOURCES = (Path(__file__).with_name("batch.c"), Path(__file__).with_name("xxh3.h"))
_FLAGS = ("-std=c11", "-O3", "-march=native", "-pthread")


class EntryParts(Structure):
    """`struct parts` of batch.c."""

    _fields_ = (
        ("first", c_void_p),
        ("num_parts", c_int64),
        ("part_stride", c_int64),
        ("part_bytes", c_int64),
    )

    @classmethod
    def of(cls, rows: NDArray[np.uint8]) -> "EntryParts | None":
        """Describe `[parts, all entries, bytes of a part]`; None unless a part's entries lie one after the other."""
        num_parts, _, part_bytes = rows.shape
        return cls(rows.ctypes.data, num_parts, rows.strides[0], part_bytes) if _is_plain(rows) else None


class HeadParts(Structure):
    """`struct head` of batch.c."""

    _fields_ = (
        ("at", c_void_p),
        ("header_bytes", c_int64),
        ("record_bytes", c_int64),
        ("most", c_int64),
        ("magic", c_uint32),
        ("received", c_int64),
    )


@lru_cache(maxsize=1)
def load_payload_kernels() -> PyDLL | None:
    """Return the library, or None where it cannot be had. Compiling takes a second.

    Its functions let go of the interpreter's lock themselves, where that is worth it.
    """
    try:
        library = load_native("payloads", _SOURCES, _FLAGS, default_cache_dir(), PyDLL)
    except KernelsUnavailable:
        return None
    assert isinstance(library, PyDLL)
    at, number, parts = c_void_p, c_int64, POINTER(EntryParts)
    library.prfaas_digests.argtypes = (c_char_p, number, py_object, number, at, number)
    library.prfaas_copy_out.argtypes = (parts, at, py_object, number, c_char_p, number, at)
    library.prfaas_copy_in.argtypes = (parts, at, py_object, number)
    library.prfaas_copy_in_sealed.argtypes = (parts, at, py_object, number, c_char_p, number, at, c_char_p)
    library.prfaas_receive.argtypes = (c_int, py_object, number, c_char_p, number, at, POINTER(HeadParts))
    library.prfaas_receive_head.argtypes = (c_int, POINTER(HeadParts))
    library.prfaas_addresses.argtypes = (py_object, number, at)
    library.prfaas_queue_copies.argtypes = (at, at, at, at, number, at)
    return library


def _is_plain(rows: NDArray[np.uint8]) -> bool:
    return rows.strides[1:] == (rows.shape[2], 1)
