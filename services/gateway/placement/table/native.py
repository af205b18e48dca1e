"""match.c, compiled for this machine at its first use. Without a C compiler NumPy does the same, but slower."""

from collections.abc import Callable
from ctypes import POINTER, PyDLL, Structure, byref, c_char_p, c_int32, c_int64, c_uint64, c_void_p
from functools import lru_cache
from pathlib import Path

from shared.native import KernelsUnavailable, default_cache_dir, load_native

_SOURCE = Path(__file__).with_name("match.c")
_FLAGS = ("-std=c11", "-O3", "-march=native")


class Table(Structure):
    """`struct table` of match.c."""

    _fields_ = (("words", c_void_p), ("multiplier", c_uint64), ("last_row", c_uint64), ("shift", c_int32))


class Matched(Structure):
    """`struct matched` of match.c."""

    _fields_ = (
        ("holder_of", c_void_p),
        ("values", c_void_p),
        ("num_blocks", c_int64),
        ("num_rows", c_int64),
        ("rows", c_void_p),
        ("masks", c_void_p),
    )


@lru_cache(maxsize=1)
def load_match() -> Callable[[Table, bytes, Matched], None] | None:
    """Return what adds a table's pairs of packed keys to what is matched, or None where it cannot be had.

    Compiling takes a part of a second. A call keeps the GIL: it is over sooner than another thread would give it back.
    """
    try:
        function = load_native("match", [_SOURCE], _FLAGS, default_cache_dir(), PyDLL).prfaas_match
    except KernelsUnavailable:
        return None
    function.argtypes, function.restype = (POINTER(Table), c_char_p, POINTER(Matched)), None
    return lambda table, keys, matched: function(byref(table), keys, byref(matched))
