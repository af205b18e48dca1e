"""`python -m deploy.up`: runs the Procfile, keeps the console quiet, and says truthfully how it ended.

Every process writes to .run/logs/<name>.log. A process that dies is started again; five deaths within a minute, or bad
settings, end the suite. The console shows what `ready` prints, each warning and error, and the last lines of a process
that ended although nobody asked it to. Ctrl-C stops all of it, a second one at once.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from deploy.up.console import LOUD, Console
from deploy.up.environment import ROOT, environment
from deploy.up.procfile import parse_procfile
from deploy.up.supervisor import Supervisor


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.up", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--procfile", type=Path, default=ROOT / "Procfile")
    parser.add_argument("--logs", type=Path, default=ROOT / ".run/logs", help="the folder for the processes' logs")
    options = parser.parse_args()
    try:
        commands = parse_procfile(options.procfile.read_text())
    except (OSError, ValueError) as error:
        parser.error(f"{options.procfile}: {error}")
    console = Console(options.logs, sys.stdout)
    console.say(f"starting {', '.join(name for name in commands if name != LOUD)}; logs are in {options.logs}")
    supervisor = Supervisor(commands, environment(dict(os.environ)), console, ROOT)
    try:
        return asyncio.run(supervisor.run())
    finally:
        console.close()


if __name__ == "__main__":
    sys.exit(main())
