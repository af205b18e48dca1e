"""The tables of docs/deploy/sizing.md are what the planner says, and the overlay for GPUs follows them."""

import re
from pathlib import Path

import pytest

from services.gateway.plan.__main__ import main
from tests.support.manifests import of_kind, rendered
from tests.support.suite import ROOT

PAGE = (ROOT / "docs/deploy/sizing.md").read_text()
FILE = ROOT / "examples/plans/eight-and-eight.toml"
LINES = ("threshold t, tokens", "N_prfaas / N_p / N_d", "Lambda, req/s", "bound by")


def planned(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(path)]) == 0
    return capsys.readouterr().out


def figures(output: str) -> list[str]:
    """Return the planner's first column in the lines that the page has."""
    found = (re.search(rf"^{re.escape(line)} +(.+?)  ", output, re.MULTILINE) for line in LINES)
    return [each[1].strip() for each in found if each is not None]


def test_the_printed_plan_is_the_planners(capsys: pytest.CaptureFixture[str]) -> None:
    (shown,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    table, _, _ = planned(FILE, capsys).rpartition("\n\n")  # the other way to average is too long a line
    assert shown.rstrip("\n") == table
    assert f"python -m services.gateway.plan {FILE.relative_to(ROOT)}\n" in PAGE


@pytest.mark.parametrize("gbit_s", [10, 25, 50, 100])
def test_each_row_of_links_is_the_planners(gbit_s: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "case.toml"
    path.write_text(FILE.read_text().replace("capacity_gbit_s = 100\n", f"capacity_gbit_s = {gbit_s}\n"))
    threshold, division, rate, bound = figures(planned(path, capsys))
    row = f"| {gbit_s} | {threshold} | {division} | {rate} | {bound.removeprefix('pd_')} |"
    assert row in PAGE


def test_the_overlay_for_gpus_is_the_division_of_a_row() -> None:
    replicas = {
        (d["metadata"]["namespace"], d["metadata"]["name"]): d["spec"]["replicas"]
        for d in of_kind(rendered("gpu"), "Deployment")
    }
    home = replicas["prfaas-west", "prefill"], replicas["prfaas-west", "decode"]
    assert sum(home) == replicas["prfaas-east", "prefill"] == 8
    assert f"| 50 | 6,016 | 2 / {home[0]} / {home[1]} |" in PAGE
