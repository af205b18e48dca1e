"""The comparison of routing policies: slices of traces, the search, intervals, the page."""

import math
import statistics
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.routing.cases import RoutingCase, routing_cases
from benchmarks.routing.contestants import CONTESTANTS, OURS, PAPERS, policy
from benchmarks.routing.judging import Interval, Judged
from benchmarks.routing.page import page
from benchmarks.routing.recorded import SlicedTrace, conversation_trace, uncached_lengths
from benchmarks.routing.trials import Trial, TrialFigures, TrialOutcome, run_trial
from services.gateway.routing.policies import POLICIES


def measured(name: str, goodputs: list[float], **options: Any) -> TrialOutcome:
    case = cast(RoutingCase, SimpleNamespace(letter="c", title="a case", has_prefixes=False))
    return TrialOutcome(case, name, options, tuple(TrialFigures(value, value / 4, 1.0, 2.0, 0.1) for value in goodputs))


def judged() -> Judged:
    return Judged(
        [
            measured(OURS, [2.2, 2.4, 2.0]),
            measured(PAPERS, [2.0, 2.2, 1.8], offload_threshold_tokens=1000),
            measured("gorgo", [2.1, 2.4, 1.9]),
        ]
    )


def test_every_policy_is_compared_and_takes_the_options_of_its_grid() -> None:
    assert {one.name for one in CONTESTANTS} == set(POLICIES)
    case = cast(RoutingCase, SimpleNamespace(threshold_tokens=1000, has_prefixes=True))
    for one in CONTESTANTS:
        for options in one.candidates(case):
            assert policy(one.name, options) is not None


def test_a_seed_has_its_own_slice_of_a_trace() -> None:
    trace = conversation_trace(None)
    sliced = SlicedTrace(trace, "home", 100, 50, speedup=2.0)
    first, second = (list(sliced.requests(seed, 512)) for seed in (0, 1))
    assert [request.prompt for request in second] == [request.prompt for request in trace[100:150]]
    assert first[0].at_s == second[0].at_s == 0
    assert second[-1].at_s == pytest.approx((trace[149].at_s - trace[100].at_s) / 2)
    lengths = uncached_lengths(trace[:200], 100)
    assert lengths[0] == trace[0].prompt.num_tokens
    assert lengths[100] == trace[100].prompt.num_tokens, "a slice begins with empty caches"
    assert sum(lengths) < sum(request.prompt.num_tokens for request in trace[:200])


def test_intervals_are_students() -> None:
    interval = Interval.of([1.0, 2.0, 3.0])
    assert interval.mean == 2
    assert interval.half == pytest.approx(4.303 / math.sqrt(3))
    assert interval.text(1) == "2.0 ± 2.5"
    assert math.isinf(Interval.of([1.0]).half)


def test_differences_are_paired_and_relative_to_the_rival() -> None:
    assert judged().best_rival.name == "gorgo"
    gain = judged().gain_percent(judged().of(PAPERS))
    assert gain.mean == pytest.approx(10.0)
    assert gain.half == pytest.approx(0.0, abs=1e-9)
    best, over = judged().checks()
    assert best.met
    assert over.value == pytest.approx(10.0)


def test_the_page_says_what_was_missed() -> None:
    case = judged()
    weaker = Judged([measured(OURS, [1.0, 1.1, 0.9]), *case.contestants[1:]])
    text = page([weaker], "--out DIR", (1, 2, 3), "The traces are those of somebody.")
    assert f"| (c) | `gorgo` | **{weaker.gain_percent(weaker.best_rival).text(1)}**" in text
    assert "python -m benchmarks.routing --out DIR" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_a_trial_runs_in_each_case_of_the_paper() -> None:
    cases = routing_cases(None)
    assert list(cases) == list("abcdefg")
    figures = run_trial(Trial(cases["g"], OURS, {}, seed=3, num_requests=30))
    assert figures.goodput_per_s > 0
    assert 0 < figures.good_share <= 1
    assert figures.ttft_p50_s <= figures.ttft_p99_s
    assert figures == run_trial(Trial(cases["g"], OURS, {}, seed=3, num_requests=30)), "the same once more"
    assert statistics.fmean(one.num_requests for one in cases.values()) > 100
    assert replace(cases["d"]).has_prefixes
