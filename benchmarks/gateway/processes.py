"""The processes of the measurement: started on a core of their own, asked for their address, ended."""

import asyncio
import os
import shlex
import sys
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.harness import ROOT

START_S = 60.0
STOP_S = 10.0
_CPU_CLOCK = 2  # of Linux's clock ids for processes: time on a processor, in nanoseconds

Cores = Collection[int]


class ChildProcess:
    """A process that runs until its standard input closes, or until it is told to stop."""

    def __init__(self, process: asyncio.subprocess.Process, said: str = "") -> None:
        self._process = process
        self.said = said  # its first line: an address or a port

    def cpu_s(self) -> float:
        """Return the processor time so far of all threads of it and of its children."""
        return sum(time.clock_gettime(_clock_of(pid)) for pid in self._pids())

    def rss_bytes(self) -> int:
        """Return the memory that it and its children have in use."""
        return sum(psutil.Process(pid).memory_info().rss for pid in self._pids())

    def _pids(self) -> list[int]:
        own = psutil.Process(self._process.pid)
        return [own.pid, *(child.pid for child in own.children(recursive=True))]


class SplitCores(NamedTuple):
    """Who runs where; on a machine of one core both are that core."""

    measured: Cores
    others: Cores  # workers and client


def split_cores() -> SplitCores:
    """Keep this process off the first core, and return the split."""
    cores = sorted(os.sched_getaffinity(0))
    split = SplitCores(cores[:1], cores[1:] or cores)
    os.sched_setaffinity(0, split.others)
    return split


@asynccontextmanager
async def child(tree: Path, *command: str, cores: Cores = ()) -> AsyncIterator[ChildProcess]:
    """Run a file of this package on the code of `tree`, on `cores` if there are any. Its logs are written, and thrown
    away."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        *command,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=partial(os.sched_setaffinity, 0, cores) if cores else None,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START_S):
            said = (await process.stderr.readline()).decode().strip()
        yield ChildProcess(process, said)
    finally:
        process.stdin.close()
        await process.wait()


@asynccontextmanager
async def foreign(command: str, cores: Cores) -> AsyncIterator[ChildProcess]:
    """Run a command of the shell's syntax that is not ours. It is told to stop, and killed when it does not."""
    process = await asyncio.create_subprocess_exec(
        *shlex.split(command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        preexec_fn=partial(os.sched_setaffinity, 0, cores) if cores else None,
    )
    try:
        yield ChildProcess(process)
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def file_of(name: str) -> str:
    return str(ROOT / "benchmarks" / "gateway" / name)


def _clock_of(pid: int) -> int:
    """Return a process's clock (clock_getcpuclockid(3), where Python has no call)."""
    return ~pid << 3 | _CPU_CLOCK
