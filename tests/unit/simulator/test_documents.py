"""The example and the commands of docs/routing/simulator.md work."""

import re
import shlex

import pytest

from benchmarks import harness
from benchmarks.simulator.__main__ import add_options, measure
from tests.support.suite import ROOT

PAGE = (ROOT / "docs/routing/simulator.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block("python"), "simulator.md", "exec"), {})
    ttft_s, goodput_per_s = map(float, capsys.readouterr().out.split())
    assert 0 < ttft_s < 60
    assert 0 < goodput_per_s < 5


def test_the_commands_run(capsys: pytest.CaptureFixture[str]) -> None:
    for command in block("sh").splitlines():
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", "benchmarks.simulator"]
        assert harness.main("simulator", measure, add_options, words[3:]) == 0
        assert "MISSED" not in capsys.readouterr().out
