"""Runs the processes of a Procfile, keeps the console quiet, and says truthfully how it ended.

Every process writes to a log file of its own. A process that dies is started again; five deaths within a minute, or bad
settings, end the suite. The console shows what `ready` prints, each warning and error, and the last lines of a process
that ended although nobody asked it to. Ctrl-C stops all of it, a second one at once.
"""

import asyncio
import os
import sys
from pathlib import Path

from deploy.up.console import LOUD, Console
from deploy.up.environment import ROOT, environment
from deploy.up.procfile import parse_procfile
from deploy.up.supervisor import Supervisor


def run_suite(procfile: Path, logs: Path) -> int:
    """Run until a stop is asked for or a process is given up; return 0 when all obeyed a stop that was asked for.

    Raises `OSError` and `ValueError` when the Procfile cannot be read.
    """
    commands = parse_procfile(procfile.read_text())
    console = Console(logs, sys.stdout)
    console.say(f"starting {', '.join(name for name in commands if name != LOUD)}; logs are in {logs}")
    supervisor = Supervisor(commands, environment(dict(os.environ)), console, ROOT)
    try:
        return asyncio.run(supervisor.run())
    finally:
        console.close()
