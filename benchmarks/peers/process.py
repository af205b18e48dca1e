"""The parent's side of a contestant: start it, give it a command, and have it stand still while others run."""

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from benchmarks.harness import ROOT

START_TIMEOUT_S = 300.0
COMMAND_TIMEOUT_S = 900.0
END_TIMEOUT_S = 20.0
_SHOWN = 600  # characters of what a child that failed has said last


class PeerFailed(Exception):
    """A child that did not start, did not answer in time, or answered with an error."""


class PeerProcess:
    """One child process in a session of its own. Stopped (SIGSTOP) whenever it has no command: nothing of it spins."""

    def __init__(self, name: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Start it and wait until it is ready. Raises `PeerFailed`."""
        self.name = name
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        self._received = b""
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,
        )
        try:
            self.about: dict[str, Any] = self._answer(START_TIMEOUT_S)["ready"]
        except BaseException:
            self.close()
            raise
        self._pause()

    def __enter__(self) -> "PeerProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def ask(self, **command: Any) -> float:
        """Return the seconds that the command took by the child's own clock. Raises `PeerFailed`."""
        return float(self.request(**command)["seconds"])

    def request(self, **command: Any) -> dict[str, Any]:
        """Return the child's whole answer. Raises `PeerFailed`."""
        self._signal(signal.SIGCONT)
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
            return self._answer(COMMAND_TIMEOUT_S)
        except BrokenPipeError as error:
            raise PeerFailed(f"{self.name} ended: {self._last_words()}") from error
        finally:
            self._pause()

    def close(self) -> None:
        """End the child, by force if it does not go. Idempotent."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it is gone already
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def _pause(self) -> None:
        """Stop the child; return when all its threads stand still, or it has ended."""
        self._signal(signal.SIGSTOP)
        if self._process.poll() is None:
            pid = self._process.pid
            seen = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if seen is not None and seen.si_code == os.CLD_STOPPED:
                os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)  # seen: the next stop is another one

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ends = time.monotonic() + timeout_s
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._received:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, ends - time.monotonic()))
            if not ready:
                raise PeerFailed(f"{self.name} did not answer within {timeout_s:g} s")
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                raise PeerFailed(f"{self.name} ended: {self._last_words()}")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailed(f"{self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - _SHOWN))
        return self._said.read().decode("utf-8", "replace").strip() or "it said nothing"
