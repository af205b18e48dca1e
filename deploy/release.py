"""Makes a release: `python -m deploy.release 1.2.3` gathers changes/ into CHANGELOG.md, commits and tags.

It changes nothing unless the version is newer than the last, no change is uncommitted and there is no such tag.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parent.parent
VERSION_LINE = re.compile(r'^version = ".*"$', re.MULTILINE)


class ReleaseError(Exception):
    """A release that must not be made; the text says why."""


def release(version: str, root: Path = ROOT) -> str:
    """Make the release and return its tag. Raises `ReleaseError`."""
    tag = f"v{version}"
    pyproject = root / "pyproject.toml"
    current = tomllib.loads(pyproject.read_text())["project"]["version"]
    try:
        if str(Version(version)) != version or Version(version) <= Version(current):
            raise ReleaseError(f"{version} is not written in the usual way, or not newer than {current}")
    except InvalidVersion as error:
        raise ReleaseError(str(error)) from error
    if _run(root, "git", "status", "--porcelain"):
        raise ReleaseError("there are changes that are not committed")
    if _run(root, "git", "tag", "--list", tag):
        raise ReleaseError(f"{tag} is there already")
    pyproject.write_text(VERSION_LINE.sub(f'version = "{version}"', pyproject.read_text(), count=1))
    _run(root, sys.executable, "-m", "towncrier", "build", "--yes", "--version", version)
    _run(root, "git", "add", "--all")
    _run(root, "git", "commit", "--quiet", "--message", f"Release {version}")
    _run(root, "git", "tag", "--annotate", "--message", f"PrfaaS {version}", tag)
    return tag


def _run(root: Path, *command: str) -> str:
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: make release VERSION=1.2.3", file=sys.stderr)
        return 2
    try:
        tag = release(sys.argv[1])
    except ReleaseError as error:
        print(f"no release: {error}", file=sys.stderr)
        return 1
    print(f"{tag} is committed and tagged; `git push --follow-tags` publishes it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
