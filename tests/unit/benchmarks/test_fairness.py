"""What the benchmark of fairness makes of what it was answered."""

import pytest

from benchmarks.client import RequestOutcome
from benchmarks.fairness.__main__ import ALONE, CONDITIONS, FAIR, SAME, report
from benchmarks.fairness.asking import FairnessTurn
from benchmarks.fairness.cpu import CpuHistory
from benchmarks.fairness.layout import LAYOUTS, engine_core, layout


def turn(*ttfts_s: float, num_flooded: int = 0) -> FairnessTurn:
    victim = [RequestOutcome(token_times_s=[ttft_s]) for ttft_s in ttfts_s]
    flooded = [RequestOutcome(token_times_s=[1.0])] * num_flooded
    return FairnessTurn(10.0, victim, flooded, [ttft_s / 2 for ttft_s in ttfts_s])


def test_a_flood_is_compared_with_no_flood_over_all_rounds() -> None:
    found = {ALONE: [turn(1.0, 1.0), turn(1.0, 2.0)], FAIR: [turn(1.4, 1.4), turn(1.4, 3.2)], SAME: [turn(20.0)]}
    made = report({"decode alone": found}, {})
    assert [row["victim"] for row in made.rows] == list(CONDITIONS)
    assert [row["TTFT p50 to alone"] for row in made.rows] == [1.0, 1.4, 20.0]
    assert [check.value for check in made.checks] == pytest.approx([1.6, 1.6], abs=0.1)
    assert not made.met


def test_requests_that_failed_are_told_and_not_counted() -> None:
    failed = FairnessTurn(10.0, [RequestOutcome(error="HTTP 503")], [])
    made = report({"decode alone": {ALONE: [turn(1.0)], FAIR: [turn(1.0), failed], SAME: [turn(1.0)]}}, {})
    assert [row["errors"] for row in made.rows] == [0, 1, 0]
    assert made.rows[1]["asked"] == 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_engine_that_computes_prompts_has_a_core_of_its_own(name: str) -> None:
    made = layout(name)
    assert list(made.cores.values()) == [[engine_core()]]
    assert not [other for other in made.names if other.startswith("prefill") and other not in made.cores]


def test_cpu_time_between_two_instants_is_read_off_what_was_recorded() -> None:
    history = CpuHistory()
    for instant_s, used_s in ((1.0, 5.0), (2.0, 5.0), (3.0, 6.0)):
        history.note(instant_s, used_s)
    assert history.between(1.5, 2.5) == pytest.approx(0.5)
    assert history.between(0.0, 9.0) == 1.0
    assert history.between(2.0, 3.0) == 1.0
