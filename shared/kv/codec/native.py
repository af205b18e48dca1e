"""kernels.c and huffman.c, compiled for this machine at their first use. Without a C compiler NumPy and Zstandard's
library do the same, but slower."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from shared.kv.codec.names import Payload

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernels.c", "huffman.c"))
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-std=c11", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
_TIMEOUT_S = 60.0


@lru_cache(maxsize=1)
def load_kernels() -> ctypes.CDLL | None:
    """Return the library, or None where it cannot be had. Kept in PRFAAS_CACHE_DIR; compiling takes a second."""
    cache_dir = Path(os.environ.get("PRFAAS_CACHE_DIR") or "~/.cache/prfaas").expanduser()
    target = cache_dir / "native" / f"codec-{_mark()}.so"
    try:
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            _compile(target)
        return _declared(ctypes.CDLL(str(target)))
    except (OSError, subprocess.SubprocessError):
        return None


def address_of(array: NDArray[Any]) -> int:
    """Return where a contiguous array's memory is, writable and not empty. NumPy's own ways take thrice as long."""
    return ctypes.addressof(ctypes.c_char.from_buffer(array.data))


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
    library.prfaas_huffman_frame.argtypes = (at, ctypes.c_int64, at)
    library.prfaas_huffman_frame.restype = ctypes.c_int64
    return library


def _compile(target: Path) -> None:
    """Compile beside the target and rename: processes that do so at once do not see each other's halves."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        part = Path(place) / target.name
        command = [compiler, *_FLAGS, "-o", str(part), *map(str, _SOURCES), "-lm"]
        subprocess.run(command, capture_output=True, check=True, timeout=_TIMEOUT_S)
        os.replace(part, target)


def _mark() -> str:
    """Name what the result depends on: source, flags and what -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    processor = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    digest = hashlib.sha256("\0".join((*_FLAGS, platform.machine(), *processor)).encode())
    for source in _SOURCES:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
