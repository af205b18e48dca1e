"""How commands end: exit codes for scripts, and the failures that a user is told of in a line."""

EXIT_FAILED = 1
"""What was asked for did not succeed: a check failed, an answer broke off, the suite was given up."""
EXIT_USAGE = 2
"""The command line or a file that it names is wrong; typer's code too."""
EXIT_UNREACHABLE = 3
"""No gateway answers at the URL."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells say it."""


class CommandFailed(Exception):
    """A foreseeable failure. `str(error)` is for the user: what is wrong, and what to do where that is known."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        if exit_code is not None:
            self.exit_code = exit_code


class GatewayUnreachable(CommandFailed):
    """Nobody answers at the URL, or not in time."""

    exit_code = EXIT_UNREACHABLE


class GatewayRefused(CommandFailed):
    """The gateway answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
