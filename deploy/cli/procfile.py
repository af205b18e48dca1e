"""The Procfile that a command is told of."""

from pathlib import Path

from deploy.cli.failure import EXIT_USAGE, CommandFailed
from deploy.up.procfile import parse_procfile


def read_procfile(path: Path) -> dict[str, str]:
    """Return the processes of a Procfile. Raises `CommandFailed`."""
    try:
        return parse_procfile(path.read_text())
    except FileNotFoundError:
        told = "no such file; run this in a checkout of PrfaaS, or name a Procfile with --procfile"
        raise CommandFailed(f"{path}: {told}", EXIT_USAGE) from None
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{path}: {error}", EXIT_USAGE) from error
