"""The suite as `make up` runs it, started and stopped by a benchmark."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.harness import ROOT

URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Started:
    """A running suite: seconds until the line that says it is ready, and the process that holds it together."""

    seconds: float
    up: psutil.Process


@contextmanager
def suite(procfile: Path = ROOT / "Procfile", /, **environ: str) -> Iterator[Started]:
    """What `make up` runs after `setup`: prepare the model, start, wait for the first answered request.

    Its object tier begins empty: what is measured cold must not be found in what an earlier run has left. Nothing else
    may use the Procfile's ports. Raises `RuntimeError` with the output when it does not start.
    """
    with tempfile.TemporaryDirectory() as objects:
        env = {**os.environ, "PRFAAS_POOL_OBJECT_URL": Path(objects).as_uri(), **environ}
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "shared.model.files.catalog", "--weights"], cwd=ROOT, env=env, check=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.up", "--procfile", str(procfile)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            ready = Started(_wait_until_ready(process) - started, psutil.Process(process.pid))
            threading.Thread(target=_pass_on, args=(process,), daemon=True).start()
            yield ready
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)


def process_name(process: psutil.Process) -> str:
    """Return its worker id, else the module of `python -m module …`, else the file name of the program."""
    worker: str | None = process.environ().get("PRFAAS_WORKER_ID")
    if worker:
        return worker
    command: list[str] = process.cmdline()
    if "-m" in command[:-1]:
        return command[command.index("-m") + 1]
    return Path(command[0]).name if command else str(process.pid)


def _pass_on(process: "subprocess.Popen[str]") -> None:
    """Show what the suite says. It would stand still when nobody reads its warnings."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            sys.stderr.write(line)


def _wait_until_ready(process: "subprocess.Popen[str]") -> float:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("ready after"):
            return time.perf_counter()
    raise RuntimeError("the suite did not start:\n" + "".join(seen))
