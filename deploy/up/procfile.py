"""Reads a Procfile: a line `name: command` is one process."""

import re

_LINE = re.compile(r"^([A-Za-z0-9_-]+):\s*(\S.*)$")


def parse_procfile(text: str) -> dict[str, str]:
    """Return the shell command of each process by name, in the order of the file.

    Empty lines and comments are skipped. Raises `ValueError` for a line that is no process or names one again, and for
    a text without any.
    """
    commands: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None or match[1] in commands:
            raise ValueError(f"line {number} is not `name: command` with a name of its own: {line!r}")
        commands[match[1]] = match[2].rstrip()
    if not commands:
        raise ValueError("it names no process")
    return commands
