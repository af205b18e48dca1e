"""Commands and answers as lines of JSON, between the parts of a contestant. Standard library only: Pythons differ."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def serve(ready: dict[str, Any], do: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Say that we are ready, then answer commands until the parent closes our input.

    Whatever libraries print goes to standard error. An exception is the answer `{"error": text}`.
    """
    answers = open_answers()
    print(json.dumps({"ready": ready}), file=answers)
    for line in sys.stdin:
        try:
            answer = do(json.loads(line))
        except Exception as error:  # noqa: BLE001 - the parent is told, and decides
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


def open_answers() -> Any:
    """Take standard output for answers, and die with the parent: who stands still would not see its end."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


class Child:
    """A process that speaks these lines. Errors of it are raised here as `RuntimeError`."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        """Start it and wait until it is ready."""
        self._name = " ".join(command[1:4])
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environ or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about: dict[str, Any] = self.answer()["ready"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, **command: Any) -> None:
        assert self._process.stdin is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self._name}: {answer['error']}")
        return answer

    def close(self, limit_s: float = 15.0) -> None:
        """Close its input and wait for its end; by force after `limit_s`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
