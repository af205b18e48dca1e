"""What the benchmark of fairness makes of what it was answered."""

import os

import pytest

from benchmarks.client import RequestOutcome
from benchmarks.fairness.__main__ import ALONE, FAIR, LEAST, SAME, report
from benchmarks.fairness.asking import FairnessTurn
from benchmarks.fairness.cpu import CpuHistory
from benchmarks.fairness.engines import StepsRun
from benchmarks.fairness.layout import LAYOUTS, computing_engines, layout, other_cores


def turn(*ttfts_s: float, num_flooded: int = 0) -> FairnessTurn:
    victim = [RequestOutcome(token_times_s=[ttft_s]) for ttft_s in ttfts_s]
    flooded = [RequestOutcome(token_times_s=[1.0])] * num_flooded
    return FairnessTurn(10.0, victim, flooded, [ttft_s / 2 for ttft_s in ttfts_s])


def test_a_flood_is_compared_with_no_flood_over_all_rounds() -> None:
    found = {ALONE: [turn(1.0, 1.0), turn(1.0, 2.0)], FAIR: [turn(1.4, 1.4), turn(1.4, 3.2)], SAME: [turn(20.0)]}
    made = report({"decode alone": found}, {})
    assert [row["victim"] for row in made.rows] == [ALONE, LEAST, FAIR, SAME]
    assert [row["TTFT p50 to alone"] for row in made.rows] == [1.0, 1.0, 1.4, 20.0]
    assert [check.value for check in made.checks] == pytest.approx([1.6, 1.6], abs=0.1)
    assert not made.met


def test_requests_that_failed_are_told_and_not_counted() -> None:
    failed = FairnessTurn(10.0, [RequestOutcome(error="HTTP 503")], [])
    made = report({"decode alone": {ALONE: [turn(1.0)], FAIR: [turn(1.0), failed], SAME: [turn(1.0)]}}, {})
    assert [row["errors"] for row in made.rows if "errors" in row] == [0, 1, 0]
    assert made.rows[2]["asked"] == 1


def test_the_flood_of_ones_own_may_be_left_out() -> None:
    made = report({"decode alone": {ALONE: [turn(1.0)], FAIR: [turn(1.0)], SAME: []}}, {})
    assert [row["victim"] for row in made.rows] == [ALONE, LEAST, FAIR]


def test_the_least_wait_is_the_rest_of_a_step_of_the_flood() -> None:
    fair = turn(1.3)
    fair.between = StepsRun(4, 2.0)
    made = report({"decode alone": {ALONE: [turn(1.0)], FAIR: [fair, turn(1.5)], SAME: [turn(20.0)]}}, {})
    least = made.rows[1]
    assert least["step ms"] == 500
    assert (least["TTFT p50 to alone"], least["TTFT p95 to alone"]) == pytest.approx((1.25, 1.475), abs=0.01)


@pytest.mark.parametrize("name", LAYOUTS)
def test_engines_that_compute_prompts_share_a_core_with_what_is_bounded_only(name: str) -> None:
    made = layout(name)
    engines = computing_engines(name)
    assert len({made.cores[engine][0] for engine in engines}) == min(len(engines), len(os.sched_getaffinity(0)))
    for engine in engines:
        assert len(made.cores[engine]) == 1
        assert made.shares[engine] == (1.0 if made.cores[engine][0] not in other_cores(name) else 0.7)


def test_cpu_time_between_two_instants_is_read_off_what_was_recorded() -> None:
    history = CpuHistory()
    for instant_s, used_s in ((1.0, 5.0), (2.0, 5.0), (3.0, 6.0)):
        history.note(instant_s, used_s)
    assert history.between(1.5, 2.5) == pytest.approx(0.5)
    assert history.between(0.0, 9.0) == 1.0
    assert history.between(2.0, 3.0) == 1.0
