"""C sources compiled for this machine at their first use, and kept. Whoever asks can do without them, but slower."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from numpy.typing import NDArray

_COMPILERS = ("cc", "gcc", "clang")
_TIMEOUT_S = 120.0


class KernelsUnavailable(Exception):
    """The library cannot be had on this machine; the message says why."""


def default_cache_dir() -> Path:
    """Return PRFAAS_CACHE_DIR, for those who are told no settings."""
    return Path(os.environ.get("PRFAAS_CACHE_DIR") or "~/.cache/prfaas").expanduser()


def load_native(
    name: str, sources: Sequence[Path], flags: Sequence[str], cache_dir: Path, kind: type[ctypes.CDLL] = ctypes.CDLL
) -> ctypes.CDLL:
    """Return the library made of `sources`, headers among them; compiled into `cache_dir` when it is not there yet.

    Compiling takes a second or many: processes that want the same at once wait for one. Raises `KernelsUnavailable`
    with the reason: no compiler, or the compiler's own words.
    """
    target = cache_dir / "native" / f"{name}-{_mark(sources, flags)}.so"
    try:
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(target.with_suffix(".lock"), timeout=2 * _TIMEOUT_S):
                if not target.is_file():
                    _compile(target, sources, flags)
        return kind(str(target))
    except OSError as error:  # filelock's Timeout among them
        raise KernelsUnavailable(f"{target}: {error}") from error


def address_of(array: NDArray[Any]) -> int:
    """Return where a contiguous array's memory is, writable and not empty. NumPy's own ways take thrice as long."""
    return ctypes.addressof(ctypes.c_char.from_buffer(array.data))


def _compile(target: Path, sources: Sequence[Path], flags: Sequence[str]) -> None:
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise KernelsUnavailable(f"no C compiler: looked for {', '.join(_COMPILERS)}")
    part = target.with_name(f".{target.name}.{os.getpid()}")
    compiled = [str(source) for source in sources if source.suffix == ".c"]
    try:
        done = subprocess.run(
            [compiler, *flags, "-fPIC", "-shared", "-o", str(part), *compiled, "-lm"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise KernelsUnavailable(f"{compiler} failed: {done.stderr.strip()[-500:]}")
        os.replace(part, target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailable(f"{compiler}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _mark(sources: Sequence[Path], flags: Sequence[str]) -> str:
    """Name what the result depends on: the sources, the flags and the processor."""
    digest = hashlib.sha256("\0".join((*flags, platform.machine(), _processor())).encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def _processor() -> str:
    """What -march=native looks at: a cache that moves to another machine must not be used there."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
