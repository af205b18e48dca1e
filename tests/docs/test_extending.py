"""The worked examples of docs/extending: applied to a copy of the tree as they stand, and run with their own commands.

A block of code begins with a comment that says where it goes: `# new file PATH`, or `# PATH, after: LINE`. Imports of
the latter go to those of the file, and its other lines behind that line.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.suite import ROOT

PAGES = ("routing_policy.md", "codec.md", "family.md")
BLOCKS = re.compile(r"<!-- run by tests/docs/test_extending.py -->\n\n```(\w+)\n(.*?)```", re.DOTALL)
COPIED = ("benchmarks", "deploy", "docs", "services", "shared", "simulator", "tests")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the tree that may be changed."""
    for name in COPIED:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def apply(tree: Path, block: str) -> None:
    where, _, text = block.partition("\n")
    if new := re.fullmatch(r"# new file (\S+)", where):
        path = tree / new[1]
        assert not path.exists(), f"{new[1]} is not new"
        path.write_text(text)
        return
    known = re.fullmatch(r"(?:#|//) (\S+), after: (.+)", where)
    assert known, f"a block that does not say where it goes: {where}"
    add_lines(tree / known[1], known[2], [line for line in text.splitlines() if line])


def add_lines(path: Path, after: str, added: Sequence[str]) -> None:
    lines = path.read_text().splitlines()
    imports = [line for line in added if line.startswith("from ")]
    (place,) = (number for number, line in enumerate(lines) if line.strip() == after)
    lines[place + 1 : place + 1] = [line for line in added if line not in imports]
    if imports:
        first = next(number for number, line in enumerate(lines) if line.startswith("from "))
        lines[first:first] = imports
    path.write_text("\n".join(lines) + "\n")


def run(tree: Path, command: str) -> None:
    program, *arguments = command.split()
    assert program.startswith(".venv/bin/"), f"only what is in .venv is run: {command}"
    done = subprocess.run(
        [Path(sys.executable).parent / Path(program).name, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"


def test_every_example_is_run() -> None:
    assert {path.name for path in (ROOT / "docs/extending").glob("*.md")} == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_an_example_works_as_it_is_written(page: str, tree: Path) -> None:
    blocks = BLOCKS.findall((ROOT / "docs/extending" / page).read_text())
    assert {"python", "sh"} <= {language for language, _ in blocks}
    for language, text in blocks:
        if language != "sh":
            apply(tree, text)
            continue
        for command in text.splitlines():
            run(tree, command)
