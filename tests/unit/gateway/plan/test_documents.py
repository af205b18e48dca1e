"""The commands and the file of docs/routing/planner.md work."""

import re
import shlex
from pathlib import Path

import pytest

from services.gateway.plan.__main__ import main
from services.gateway.plan.reading import read
from services.gateway.plan.schema import CapacityFile
from tests.support.suite import ROOT

PAGE = (ROOT / "docs/routing/planner.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (commands,) = blocks("sh")
    monkeypatch.chdir(tmp_path)  # where the plot goes
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for command in commands.splitlines():
        program = ["python", "-m", "services.gateway.plan"]
        words = shlex.split(command)
        assert words[:3] == program
        assert main(words[3:]) == 0
        assert capsys.readouterr().err == ""
    assert (tmp_path / "plan.png").exists()


def test_the_file_of_the_page_is_planned_and_its_sections_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (text,) = blocks("toml")
    path = tmp_path / "case.toml"
    path.write_text(text)
    assert main([str(path)]) == 0
    assert "SLO of TTFT P90 (2 s)" in capsys.readouterr().out
    file = read(path)
    assert isinstance(file, CapacityFile)
    for section in type(file).model_fields.keys() - {"kind", "title"}:
        assert f"`{section}`" in PAGE or re.search(rf"^{section}\b", text, re.MULTILINE), section


def test_make_plan_is_the_first_command() -> None:
    assert "PLAN := examples/plans/paper.toml\n" in (ROOT / "Makefile").read_text()
    assert blocks("sh")[0].splitlines()[0].endswith(" examples/plans/paper.toml")


def test_every_example_file_is_listed() -> None:
    readme = (ROOT / "examples/README.md").read_text()
    for path in (ROOT / "examples/plans").iterdir():
        assert f"examples/plans/{path.name}`" in readme
