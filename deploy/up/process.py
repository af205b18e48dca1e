"""One process of the suite: in a session of its own, read line by line, ended with all that it started."""

import asyncio
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

CHUNK_BYTES = 64 * 1024
LEFTOVER_S = 1.0
"""How long output is awaited after the end: what has left the session may keep the pipe open."""

_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
"""Linux only: whatever kills the supervisor, its processes follow. Elsewhere they outlive a SIGKILL of it."""


class Process:
    """A running shell command. Its owner awaits `ended` once, which also reads what it writes."""

    def __init__(self, process: asyncio.subprocess.Process, output: int) -> None:
        self._process = process
        self._output = output

    @classmethod
    async def start(cls, command: str, folder: Path, environ: Mapping[str, str]) -> "Process":
        """Run `command` in `folder`."""
        reading, writing = os.pipe()  # not asyncio's: its `wait` may last until nobody holds the pipe any more
        try:
            process = await asyncio.create_subprocess_exec(
                *(*_DIES_WITH_US, "/bin/sh", "-c", command),
                cwd=folder,
                env=environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return cls(process, reading)

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to the process and to what it has started."""
        with suppress(ProcessLookupError, PermissionError):  # the latter is macOS's word for: only zombies
            os.killpg(self._process.pid, signum)

    async def ended(self, on_line: Callable[[str], None]) -> int:
        """Hand on each line until the process ends, kill what it leaves behind; return its exit code.

        Nothing of it is left either when this is cancelled or `on_line` raises.
        """
        try:
            async with asyncio.TaskGroup() as group:
                relay = group.create_task(_relay_lines(self._output, on_line))
                code = await self._process.wait()
                self.send(signal.SIGKILL)
                await asyncio.wait([relay], timeout=LEFTOVER_S)
                relay.cancel()
        finally:
            self.send(signal.SIGKILL)
            await self._process.wait()
        return code


async def _relay_lines(fd: int, on_line: Callable[[str], None]) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    with os.fdopen(fd, "rb", buffering=0) as pipe:
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            rest = b""
            while chunk := await reader.read(CHUNK_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    on_line(line.decode(errors="replace"))
            if rest:
                on_line(rest.decode(errors="replace"))
        finally:
            transport.close()
