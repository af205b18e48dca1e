"""batch.c, compiled for this machine at its first use. Without a C compiler the xxhash package does the same, entry by
entry."""

from ctypes import POINTER, PyDLL, Structure, c_char_p, c_int64, c_void_p, py_object
from functools import lru_cache
from pathlib import Path

from shared.native import KernelsUnavailable, default_cache_dir, load_native

_SOURCES = (Path(__file__).with_name("batch.c"), Path(__file__).with_name("xxh3.h"))
_FLAGS = ("-std=c11", "-O3", "-march=native")


class EntryParts(Structure):
    """`struct parts` of batch.c."""

    _fields_ = (
        ("first", c_void_p),
        ("num_parts", c_int64),
        ("part_stride", c_int64),
        ("part_bytes", c_int64),
    )


@lru_cache(maxsize=1)
def load_checksums() -> PyDLL | None:
    """Return the library, or None where it cannot be had. Compiling takes a second.

    Its functions let go of the interpreter's lock themselves, where that is worth it.
    """
    try:
        library = load_native("checksum", _SOURCES, _FLAGS, default_cache_dir(), PyDLL)
    except KernelsUnavailable:
        return None
    assert isinstance(library, PyDLL)
    library.prfaas_digests.argtypes = (c_char_p, c_int64, py_object, c_int64, c_void_p)
    library.prfaas_copy_out.argtypes = (
        POINTER(EntryParts),
        c_void_p,
        py_object,
        c_int64,
        c_char_p,
        c_int64,
        c_void_p,
    )
    return library
