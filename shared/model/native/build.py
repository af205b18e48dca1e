"""Compile the C sources for this machine, once, and load them. Where there is no C compiler PyTorch does the work."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

_SOURCES = Path(__file__).parent
_COMPILERS = ("cc", "gcc", "clang")
# No -ffast-math: masks are infinities. torch loads its OpenMP library first and ours finds that by name: both share one
# set of threads.
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-fopenmp")
_FLAGS_SHARED = ("-fPIC", "-shared", "-fvisibility=hidden")
_TIMEOUT_S = 120.0


class KernelsUnavailable(Exception):
    """The library cannot be had on this machine; the message says why."""


@lru_cache(maxsize=1)
def load_library(cache_dir: Path) -> ctypes.CDLL:
    """Return the library for this machine, compiled into `cache_dir` first when it is not there (seconds).

    Raises `KernelsUnavailable` with the reason: no compiler, or the compiler's own words.
    """
    import torch  # noqa: F401  (loads the OpenMP library that ours asks for by name)

    target = cache_dir / "native" / f"kernels-{_mark()}.so"
    try:
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(target.with_suffix(".lock"), timeout=2 * _TIMEOUT_S):
                if not target.is_file():
                    _compile(target)
        return ctypes.CDLL(str(target))
    except OSError as error:  # filelock's Timeout among them
        raise KernelsUnavailable(f"{target}: {error}") from error


def _compile(target: Path) -> None:
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise KernelsUnavailable(f"no C compiler: looked for {', '.join(_COMPILERS)}")
    part = target.with_name(f".{target.name}.{os.getpid()}")
    sources = [str(path) for path in sorted(_SOURCES.glob("*.c"))]
    try:
        done = subprocess.run(
            [compiler, *_FLAGS, *_FLAGS_SHARED, "-o", str(part), *sources, "-lm"],
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


def _mark() -> str:
    """Name what the result depends on: the sources, the flags and the processor."""
    digest = hashlib.sha256("\0".join((*_FLAGS, *_FLAGS_SHARED, platform.machine(), _processor())).encode())
    for path in sorted([*_SOURCES.glob("*.c"), *_SOURCES.glob("*.h")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What -march=native looks at: a cache that moves to another machine must not be used there."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
