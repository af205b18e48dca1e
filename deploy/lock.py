"""Rewrites constraints.txt from what is installed, without local versions so that every build of a release fits."""

from importlib.metadata import distributions
from pathlib import Path

HEADER = (
    "# Exact versions of all that `make setup` and the images install, transitive ones too. `make lock` rewrites it."
)
NOT_PINNED = {"pip", "prfaas"}


def pins() -> list[str]:
    found = {dist.name: dist.version.partition("+")[0] for dist in distributions()}
    return [f"{name}=={found[name]}" for name in sorted(found, key=str.lower) if name.lower() not in NOT_PINNED]


if __name__ == "__main__":
    Path("constraints.txt").write_text("\n".join([HEADER, *pins()]) + "\n")
