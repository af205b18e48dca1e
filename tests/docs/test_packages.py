"""docs/packages.md names every package of the code, and no other."""

import re

from tests.support.suite import ROOT

PAGE = (ROOT / "docs/packages.md").read_text()


def test_its_rows_are_the_folders() -> None:
    rows = re.findall(r"^\| `((?:services|shared|simulator)[\w/]*)` \|", PAGE, re.MULTILINE)
    packages = {
        path.parent.relative_to(ROOT).as_posix()
        for folder in ("services", "shared", "simulator")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert len(rows) == len(set(rows))
    assert set(rows) == packages
