"""The C kernels, compiled once for all: they take a compiler twenty seconds."""

import ctypes
from pathlib import Path

from shared.engine.settings import EngineSettings
from shared.model.native.build import load_library

CACHE = EngineSettings().cache_dir.expanduser()


def kernels() -> ctypes.CDLL:
    """Return them; a machine without a C compiler fails here, as `make test` needs one."""
    return load_library(CACHE)


def cache_with_kernels(folder: Path) -> Path:
    """Make a cache directory of a test's own, whose kernels are those of the default one; return it."""
    kernels()
    cache = folder / "cache"
    cache.mkdir()
    (cache / "native").symlink_to(CACHE / "native")
    return cache
