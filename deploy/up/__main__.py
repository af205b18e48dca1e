"""`python -m deploy.up`: runs the Procfile alone; `prfaas up` looks at the machine and prepares the model before."""

import argparse
import sys
from pathlib import Path

from deploy.up.environment import PROCFILE, RUN
from deploy.up.run import run_suite


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.up", description=__doc__)
    parser.add_argument("--procfile", type=Path, default=PROCFILE)
    parser.add_argument("--logs", type=Path, default=RUN / "logs", help="the folder for the processes' logs")
    options = parser.parse_args()
    try:
        return run_suite(options.procfile, options.logs)
    except (OSError, ValueError) as error:
        parser.error(f"{options.procfile}: {error}")


if __name__ == "__main__":
    sys.exit(main())
