"""Which processes there are."""

from contextlib import suppress
from pathlib import Path

import psutil


def gone(pid: int) -> bool:
    """Check that a process has ended, whether or not its parent has noticed."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def processes_of(folder: Path) -> list[list[str]]:
    """Return the command lines of the processes whose environment names a test's folder as TEST_FOLDER."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("TEST_FOLDER") == str(folder):
                found.append(process.cmdline())
    return found
