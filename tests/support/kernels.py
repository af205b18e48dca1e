"""The C kernels, compiled once into the checkout's scratch directory."""

import ctypes
from pathlib import Path

from shared.model.native.build import load_library


def kernels() -> ctypes.CDLL:
    """Return them; a machine without a C compiler fails here, as `make test` needs one."""
    return load_library(Path(__file__).parents[2] / ".run" / "cache")
