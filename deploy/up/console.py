"""What `make up` shows and keeps of its processes' output: one log file each, little on the console."""

import json
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

NUM_LAST_LINES = 15
SHOWN_LEVELS = {"warning", "error", "critical"}
LOUD = "ready"
"""The process whose every line is for the console."""


class Console:
    """Owns the log files. The console gets each line of `ready`, each warning and error, and what is said to it."""

    def __init__(self, logs: Path, console: TextIO) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._console = console
        self._files: dict[str, TextIO] = {}
        self._last: dict[str, deque[str]] = {}

    def say(self, line: str, details: Iterable[str] = ()) -> None:
        """Show a line of our own, and lines that belong to it; nobody sees them when the terminal has gone."""
        # Else a suite whose terminal was closed would fail at saying that it stops, and go on.
        with suppress(OSError):
            print(line, *(f"    {detail}" for detail in details), sep="\n", file=self._console, flush=True)

    def write(self, name: str, line: str) -> None:
        """Keep a line of a process and show it where it is notable."""
        if name not in self._files:
            self._files[name] = (self._logs / f"{name}.log").open("w", buffering=1)
            self._last[name] = deque(maxlen=NUM_LAST_LINES)
        self._files[name].write(line + "\n")
        self._last[name].append(line)
        if name == LOUD:
            self.say(line)
        elif notable := warning_of(line):
            self.say(f"{name}: {notable}")

    def take_last_lines(self, name: str) -> list[str]:
        """Return the last lines that a process wrote; the next life of it begins with none."""
        lines = list(self._last.get(name, ()))
        self._last[name] = deque(maxlen=NUM_LAST_LINES)
        return lines

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def warning_of(line: str) -> str | None:
    """Return the message of a JSON log line of level warning or above; None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if str(entry.get("level")) not in SHOWN_LEVELS:
        return None
    details = " ".join(f"{k}={v}" for k, v in entry.items() if k in {"error", "detail", "reason"})
    return f"{entry['level']}: {entry.get('event', '')} {details}".rstrip()
