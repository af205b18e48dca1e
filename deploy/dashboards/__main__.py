"""Writes deploy/grafana/dashboards from the panels here, or checks that they are current (`--check`)."""

import sys
from pathlib import Path

from deploy.dashboards.engines import ENGINES
from deploy.dashboards.overview import OVERVIEW
from deploy.dashboards.panels import Dashboard
from deploy.dashboards.routing import ROUTING
from deploy.dashboards.transfer import TRANSFER

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/grafana/dashboards"
DASHBOARDS: tuple[Dashboard, ...] = (OVERVIEW, TRANSFER, ENGINES, ROUTING)


def stale(folder: Path) -> dict[Path, str | None]:
    """Return the files that are not what the panels say, with what they should be; None: they should not be."""
    wanted = {folder / f"{dashboard.uid}.json": dashboard.text() for dashboard in DASHBOARDS}
    found: dict[Path, str | None] = {path: None for path in folder.glob("*.json") if path not in wanted}
    return found | {path: text for path, text in wanted.items() if not path.exists() or path.read_text() != text}


def main() -> int:
    found = stale(FOLDER)
    for path, text in found.items():
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)} is not what the panels say: run `make reference`", file=sys.stderr)
        elif text is None:
            path.unlink()
        else:
            path.write_text(text)
    return 1 if found and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
