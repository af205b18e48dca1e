"""kernels.c, compiled for this machine at its first use. Without a C compiler NumPy does the same, but slower."""

import ctypes
from functools import lru_cache
from pathlib import Path

from shared.native import KernelsUnavailable, default_cache_dir, load_native

_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-std=c11", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno")


@lru_cache(maxsize=1)
def load_kernels() -> ctypes.CDLL | None:
    """Return the library, or None where it cannot be had. Compiling takes a second."""
    try:
        return load_native("codec", [_SOURCE], _FLAGS, default_cache_dir())
    except KernelsUnavailable:
        return None
