"""The processes of the measurement: started, asked for their address, ended."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.harness import ROOT

START_S = 60.0
_CPU_CLOCK = 2  # of Linux's clock ids for processes: time on a processor, in nanoseconds


class ChildProcess:
    """A process that runs until its standard input closes."""

    def __init__(self, process: asyncio.subprocess.Process, said: str) -> None:
        self._process = process
        self.said = said  # its first line: an address or a port

    def cpu_s(self) -> float:
        """Return the processor time of all its threads so far (clock_getcpuclockid(3), where Python has no call)."""
        return time.clock_gettime(~self._process.pid << 3 | _CPU_CLOCK)


@asynccontextmanager
async def child(tree: Path, *command: str) -> AsyncIterator[ChildProcess]:
    """Run a file of this package on the code of `tree`. Its logs are thrown away, but written."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        *command,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
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


def file_of(name: str) -> str:
    return str(ROOT / "benchmarks" / "gateway" / name)
