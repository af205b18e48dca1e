"""What the congestion benchmark makes of its requests."""

import math
from pathlib import Path

import pytest

from benchmarks.congestion.__main__ import checks_of, rows_of, summary_of
from benchmarks.congestion.judging import (
    Phases,
    ServedRequests,
    forecast_error,
    last_before_moving_s,
    moved_after_s,
    returned_after_s,
    switches,
)
from benchmarks.congestion.load import arrival_times
from benchmarks.congestion.plot import draw

PHASES = Phases(10.0, 40.0, 70.0, 100.0)


def served(at_s: float, kind: str = "remote", ttft_s: float = 1.0, forecast_s: float = 1.0) -> ServedRequests:
    prefill = "prefill-east" if kind == "remote" else None
    return ServedRequests(at_s, "gateway-west", kind, prefill, forecast_s, ttft_s)


def run(moves_after_s: int = 1) -> list[ServedRequests]:
    """A request a second, which goes over the link but while that is slow."""
    slow = range(40 + moves_after_s, 70)
    return [served(second + 0.5, "decode_only" if second in slow else "remote") for second in range(100)]


def test_routing_has_moved_when_most_plans_stay_home() -> None:
    all_served = run(moves_after_s=3)
    assert moved_after_s(PHASES.of(all_served, "slow"), 40.0, former=1.0) == pytest.approx(3.5)
    assert last_before_moving_s(PHASES.of(all_served, "slow"), 40.0) == pytest.approx(2.5)
    assert returned_after_s(PHASES.of(all_served, "after"), 70.0, former=1.0) == pytest.approx(0.5)
    assert switches(all_served) == 2
    late = [*all_served[:50], *(served(one.at_s) for one in all_served[50:])]
    assert math.isinf(moved_after_s(PHASES.of(late, "slow"), 40.0, former=1.0))


def test_flapping_is_counted() -> None:
    flapping = [served(10.0 * number, "remote" if number % 2 else "decode_only") for number in range(10)]
    assert switches(flapping) == 9


def test_forecasts_are_compared_with_medians() -> None:
    measured = [served(0, ttft_s=seconds, forecast_s=1.1) for seconds in (0.9, 1.0, 30.0)]
    assert forecast_error(measured) == pytest.approx(0.1)


def test_a_run_is_told_in_rows_and_targets(tmp_path: Path) -> None:
    all_served = run()
    summary = summary_of("one gateway", PHASES, all_served)
    assert (summary["share_before"], summary["moved_after_s"], summary["switches"]) == (1.0, 1.5, 2)
    rows = rows_of("one gateway", PHASES, all_served)
    assert [(row["phase"], row["way"], row["requests"]) for row in rows] == [
        ("before", "remote, whole", 30),
        ("slow", "decode_only", 29),
        ("slow", "remote, whole", 1),
        ("after", "remote, whole", 30),
    ]
    assert all(check.met for check in checks_of("one gateway", PHASES, all_served, summary))
    draw({"one gateway": (PHASES, all_served)}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_arrivals_are_twice_as_many_before_the_load_counts() -> None:
    times = list(arrival_times(2.0, Phases(1000.0, 1300.0, 1600.0, 2000.0), seed=1))
    assert times == sorted(times)
    warming = sum(at_s < 1000 for at_s in times)
    assert warming == pytest.approx(4000, rel=0.1)
    assert len(times) - warming == pytest.approx(2000, rel=0.1)
