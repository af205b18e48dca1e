"""Servers that a benchmark starts, waits for and ends: each a process group of its own, with its output in a file."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from urllib.error import URLError
from urllib.request import urlopen

from benchmarks.harness import ROOT
from benchmarks.peers.process import PeerFailed

READY_TIMEOUT_S = 300.0
END_TIMEOUT_S = 20.0
_SHOWN = 800  # characters of what a server that failed has said last


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Servers:
    """Owns what it has started; the end of the context ends all of it, the last first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name in reversed(list(self._processes)):
            self.stop(name)

    def start(self, name: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Start a server; returns at once."""
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **environ}, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self, name: str, url: str) -> None:
        """Wait until a server answers `url` with status 200. Raises `PeerFailed` when it ends, or takes too long."""
        ends = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < ends:
            if self._processes[name].poll() is not None:
                break
            try:
                with urlopen(url, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (URLError, TimeoutError, ConnectionError):
                pass
            time.sleep(0.1)
        raise PeerFailed(f"{name} does not answer at {url}: {self._last_words(name)}")

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def stop(self, name: str) -> None:
        """Ask a server to end and wait until it has, with all that it started. Idempotent."""
        process = self._processes[name]
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        try:
            os.killpg(process.pid, signal.SIGKILL)  # children that outlived it
        except ProcessLookupError:
            pass

    def _last_words(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")[-_SHOWN:].strip()
