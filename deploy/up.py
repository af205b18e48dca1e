"""`make up`: runs the Procfile under honcho, keeps the console quiet, and says truthfully how it ended.

Every process writes to .run/logs/<name>.log. The console shows what `ready` prints, each warning and error, and the
last lines of a process that ended although nobody asked it to.
"""

import argparse
import json
import os
import queue
import signal
import sys
import threading
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import honcho.manager
from honcho.environ import parse_procfile
from honcho.printer import Message

ROOT = Path(__file__).resolve().parent.parent
LAST_LINES = 15
# Seconds between asking and killing; honcho's own five are too few on a busy machine, and it has no parameter for them.
honcho.manager.KILL_WAIT = 8
SHOWN_LEVELS = {"warning", "error", "critical"}
# How a process that was asked to stop may end: by itself, or by the signal it was sent.
ASKED_TO_STOP = {0, -signal.SIGTERM, 128 + signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGINT}
DEFAULTS = {
    # Well within the time after which a process is killed.
    "PRFAAS_DRAIN_S": "3",
    # Three engines share these cores. A thread of OpenMP that spins while it waits for one that another engine has
    # pushed aside makes a token take a second; one that sleeps costs microseconds.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Each pool has a folder of its own in it. What is cached outlives a restart; `make clean` removes it.
    "PRFAAS_POOL_OBJECT_URL": (ROOT / ".run/pool").as_uri(),
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class LogPrinter:
    """honcho's printer interface: one file per process, little on the console."""

    def __init__(self, folder: Path, console: TextIO) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.width = 0  # set by honcho
        self._folder = folder
        self._console = console
        self._files: dict[str, TextIO] = {}
        self._last: dict[str, deque[str]] = {}

    def write(self, message: Message) -> None:
        raw = message.data
        text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
        for line in text.splitlines():
            self._write_line(message.name, line)

    def say(self, line: str) -> None:
        print(line, file=self._console, flush=True)

    def last_lines(self, name: str) -> list[str]:
        return list(self._last.get(name, ()))

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _write_line(self, name: str, line: str) -> None:
        if name not in self._files:
            self._files[name] = (self._folder / f"{name}.log").open("w", buffering=1)
            self._last[name] = deque(maxlen=LAST_LINES)
        self._files[name].write(line + "\n")
        self._last[name].append(line)
        if name == "ready":
            self.say(line)
        elif notable := warning_of(line):
            self.say(f"{name}: {notable}")


def warning_of(line: str) -> str | None:
    """The message of a JSON log line of level warning or above; None for any other line."""
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


class ProcessManager(honcho.manager.Manager):  # type: ignore[misc]
    """honcho's Manager, with threads in place of forked relays and signals that only leave a note for its loop.

    honcho's own handlers write and kill from inside the signal, and fail while a process is still being started.
    """

    def __init__(self, printer: LogPrinter) -> None:
        super().__init__(printer)
        self.events: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._console = printer
        self._stop_asked = False
        self._crashed: set[str] = set()

    def terminate(self) -> None:
        """Called by honcho's loop once, when a stop was asked for or the first process has ended."""
        if self._stop_asked:
            self._console.say("stopping …")
        else:
            self._crashed = set(self._ended())
            for name, code in self._ended().items():
                self._console.say(f"{name} ended unexpectedly (exit code {code}), stopping the suite. Its last lines:")
                for line in self._console.last_lines(name):
                    self._console.say(f"    {line}")
        super().terminate()

    def exit_code(self) -> int:
        """0 when a stop was asked for and every process obeyed in time, else 1."""
        disobeyed = {name: code for name, code in self._ended().items() if code not in ASKED_TO_STOP}
        for name in sorted(disobeyed.keys() - self._crashed):
            self._console.say(f"{name} did not stop cleanly (exit code {disobeyed[name]}), see its log")
        return 1 if self._crashed or disobeyed else 0

    def _ended(self) -> dict[str, int]:
        return {name: process["returncode"] for name, process in self._processes.items() if "returncode" in process}

    def _start(self) -> None:
        # SIGHUP too: a closed terminal must not leave the suite behind.
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._ask_to_stop)
        for process in self._processes.values():
            process["process"] = threading.Thread(target=process["obj"].run, args=(self.events,), daemon=True)
            process["process"].start()

    def _ask_to_stop(self, _signum: int, _frame: FrameType | None) -> None:
        self._stop_asked = True

    def _any_stopped(self) -> bool:
        return self._stop_asked or bool(self._ended())


def environment(environ: dict[str, str]) -> dict[str, str]:
    """The suite's environment: this interpreter first on the path, defaults where the caller set nothing."""
    path = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", "")])
    return {**DEFAULTS, **environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def run(procfile: Path, logs: Path, console: TextIO) -> int:
    printer = LogPrinter(logs, console)
    suite = ProcessManager(printer)
    env = environment(dict(os.environ))
    processes: dict[str, Any] = parse_procfile(procfile.read_text()).processes
    for name, command in processes.items():
        suite.add_process(name, command, env=env, cwd=str(ROOT))
    printer.say(f"starting {', '.join(name for name in processes if name != 'ready')}; logs are in {logs}")
    try:
        suite.loop()
    finally:
        suite.kill()
        printer.close()
    return suite.exit_code()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--procfile", type=Path, default=ROOT / "Procfile")
    parser.add_argument("--logs", type=Path, default=ROOT / ".run/logs", help="the folder for the processes' logs")
    options = parser.parse_args()
    return run(options.procfile, options.logs, sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
