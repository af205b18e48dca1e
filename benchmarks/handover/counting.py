"""What a process has used and copied so far, read from outside."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from shared.native import KernelsUnavailable, default_cache_dir, load_native

_SOURCE = Path(__file__).with_name("counting.c")
_FLAGS = ("-O2", "-fno-builtin", "-ldl")
_TOTALS = Struct("<QQQ")  # `struct totals` of counting.c
_PAGE_BYTES = 4096
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Used(NamedTuple):
    """Totals of one process since its start, or the difference of two."""

    user_s: float
    system_s: float
    faults: float  # pages that were mapped because they were touched
    switches: float  # a thread began to wait
    copied: float  # bytes, by memcpy and memmove of 4 KiB and more; NaN: not counted here
    crossed: float  # bytes, to and from the kernel by reads and writes
    calls: float  # such reads and writes

    def since(self, before: "Used") -> "Used":
        return Used(*(now - then for now, then in zip(self, before, strict=True)))

    def plus(self, other: "Used") -> "Used":
        return Used(*(one + two for one, two in zip(self, other, strict=True)))


class Counter:
    """Where one process that is about to start will be counted."""

    def __init__(self, library: Path | None, file: Path) -> None:
        self._library = library
        self._file = file
        file.write_bytes(bytes(_PAGE_BYTES))

    def environ(self) -> Mapping[str, str]:
        """Return what the process needs in its environment."""
        if self._library is None:
            return {}
        return {"LD_PRELOAD": str(self._library), "COUNTING_FILE": str(self._file)}

    def used(self, pid: int) -> Used:
        """Return the totals of the process. Raises `FileNotFoundError` when it has ended."""
        # Behind the name, which may hold anything: minflt is field 10 of proc_pid_stat(5), utime 14, stime 15.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        faults, user, system = int(fields[7]), int(fields[11]), int(fields[12])
        copied, crossed, calls = (float("nan"),) * 3
        if self._library is not None:
            copied, crossed, calls = _TOTALS.unpack_from(self._file.read_bytes())
        return Used(user * _TICK_S, system * _TICK_S, faults, _switches(pid), copied, crossed, calls)


class Counting:
    """Hands out counters; knows whether this machine has a C compiler to count copies with."""

    def __init__(self, folder: Path, *, copies: bool = True) -> None:
        """Without `copies` no library stands in front of libc, and neither copies nor crossings are counted."""
        self._folder = folder
        self._number = 0
        self.absent: str | None = None  # why copies are not counted
        self._library: Path | None = None
        if not copies:
            self.absent = "not asked for"
            return
        try:
            library = load_native("counting", [_SOURCE], _FLAGS, default_cache_dir())
            self._library = Path(library._name)
        except KernelsUnavailable as error:
            self.absent = str(error)

    def counter(self) -> Counter:
        self._number += 1
        return Counter(self._library, self._folder / str(self._number))


@contextmanager
def counting(*, copies: bool = True) -> Iterator[Counting]:
    with tempfile.TemporaryDirectory() as folder:
        yield Counting(Path(folder), copies=copies)


def _switches(pid: int) -> int:
    """Return how often the threads that the process has now began to wait."""
    found = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        try:
            text = status.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has just ended
        found += int(text.rpartition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return found
