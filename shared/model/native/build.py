"""The C sources as a library for this machine. Where there is no C compiler PyTorch does the work."""

import ctypes
from functools import lru_cache
from pathlib import Path

from shared.native import load_native

_SOURCES = Path(__file__).parent
# No -ffast-math: masks are infinities. No contraction, which depends on what stands around: equal rows are to be equal.
# torch loads its OpenMP library first and ours finds that by name: both share one set of threads.
_FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-Wno-psabi"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)
_VISIBILITY = "-fvisibility=hidden"


@lru_cache(maxsize=1)
def load_library(cache_dir: Path) -> ctypes.CDLL:
    """Return the library, compiled into `cache_dir` first when it is not there (seconds).

    Raises `KernelsUnavailable` with the reason.
    """
    import torch  # noqa: F401  (loads the OpenMP library that ours asks for by name)

    sources = sorted([*_SOURCES.glob("*.c"), *_SOURCES.glob("*.h")])
    return load_native("kernels", sources, (*_FLAGS, _VISIBILITY), cache_dir)
