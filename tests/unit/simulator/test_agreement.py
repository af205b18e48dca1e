"""Queueing theory, the planner and another simulator, each in a few seconds; `benchmarks.simulator` has the rest."""

from pathlib import Path

import pytest

from benchmarks.harness import ROOT
from benchmarks.simulator.mocker import CASES as MOCKED
from benchmarks.simulator.mocker import compare_mocker
from benchmarks.simulator.planner import deployments, findings
from benchmarks.simulator.queueing import CASES, QueueCase, find
from benchmarks.simulator.scale import ScaleCase, measure_scale


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_queues_are_as_theory_has_them(case: QueueCase) -> None:
    finding = find(case, load=0.4, seeds=range(3), num_requests=20_000)
    assert finding.error_percent < 5


@pytest.mark.slow
def test_a_planned_deployment_sustains_its_plan() -> None:
    selective = deployments(ROOT / "examples" / "plans" / "paper.toml")[0]
    for finding in findings(selective, num_requests=600, seed=1):
        assert finding.error_percent < 12, finding.figure


def test_the_mocker_has_the_same_times(tmp_path: Path) -> None:
    found = list(compare_mocker(None, None, tmp_path))
    assert len(found) == len(MOCKED)
    for finding in found:
        assert finding.error_percent < 10, finding.case.name


def test_stored_blocks_are_held_and_hit() -> None:
    finding = measure_scale(ScaleCase(workers=20, blocks=10_000, requests=100, per_s=10, dcs=2))
    assert finding.held_blocks >= 10_000 // 128 * 128
    assert finding.row["requests"] == 100
