"""Files of environment variables, as systemd reads them: a line each, comments left out."""

from pathlib import Path


def read_env(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)
