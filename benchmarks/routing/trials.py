"""Simulations of policies in cases, on all cores: tuned on one seed, measured on others."""

import math
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.routing.cases import RoutingCase
from benchmarks.routing.contestants import CONTESTANTS, Options, PolicyContestant, policy
from simulator.outcome import Outcome
from simulator.simulate import simulate

TUNING_SEED = 0
LONGER, DRAIN_S = 1.1, 60.0
"""A run ends so long after the time of its arrivals: what has no first token by then is not good any more."""
WINDOW_SHARE = 0.05
"""Of the arrivals, at the beginning, that do not count: the system was empty."""


@dataclass(frozen=True)
class Trial:
    """One simulation to run. `options` have the order of the policy's fields, so that trials compare."""

    case: RoutingCase
    name: str
    options: Options
    seed: int
    num_requests: int


@dataclass(frozen=True)
class TrialFigures:
    """What came of a trial."""

    goodput_per_s: float
    good_share: float
    ttft_p50_s: float
    ttft_p99_s: float  # infinite: more than 1 % had no first token
    link_share: float  # of the nominal capacity of links to decode's datacenters, while requests came

    @classmethod
    def of(cls, outcome: Outcome) -> "TrialFigures":
        end_s = float(outcome.arrival_s[-1])
        from_s = WINDOW_SHARE * end_s
        counted = outcome.within(from_s)
        homes = set(outcome.dc)
        links = [link for (_, to_dc), link in outcome.links.items() if to_dc in homes]
        carried = sum(_carried(link.bytes_per_s, end_s) for link in links)
        nominal = sum(float(link.capacity_bytes_per_s.max()) for link in links)
        return cls(
            goodput_per_s=outcome.goodput_per_s(from_s, end_s),
            good_share=float(outcome.good[counted].mean()),
            ttft_p50_s=outcome.ttft_quantile_s(0.5, from_s),
            ttft_p99_s=outcome.ttft_quantile_s(0.99, from_s),
            link_share=carried / nominal if nominal else 0.0,
        )


def _carried(bytes_per_s: np.ndarray, end_s: float, every_s: float = 0.5) -> float:
    samples = bytes_per_s[: max(1, int(end_s / every_s))]
    return float(samples.mean()) if len(samples) else 0.0


def run_trial(trial: Trial) -> TrialFigures:
    scenario = trial.case.scenario(trial.num_requests)
    made = replace(scenario, policy=lambda: policy(trial.name, trial.options), seed=trial.seed)
    last_s = trial.num_requests / trial.case.requests_per_s
    return TrialFigures.of(simulate(replace(made, until_s=LONGER * last_s + DRAIN_S)))


_trials: Sequence[Trial] = ()


def _run_number(number: int) -> TrialFigures:
    return run_trial(_trials[number])


def run_all(trials: Sequence[Trial], processes: int | None = None) -> list[TrialFigures]:
    """Run trials on all cores; processes inherit the cases, which cannot be sent to them."""
    global _trials  # noqa: PLW0603 - what forked processes find
    _trials = trials
    with multiprocessing.get_context("fork").Pool(processes or len(os.sched_getaffinity(0))) as pool:
        return pool.map(_run_number, range(len(trials)), chunksize=1)


@dataclass(frozen=True)
class TrialOutcome:
    """A contestant in a case, with the options that the search chose, over the seeds that are reported."""

    case: RoutingCase
    name: str
    options: Options
    figures: tuple[TrialFigures, ...]  # by seed

    def values(self, name: str) -> list[float]:
        return [getattr(figures, name) for figures in self.figures]


def tuned(cases: Iterable[RoutingCase], num_share: float) -> Mapping[tuple[str, str], Options]:
    """Search each contestant's grid in each case on the tuning seed: most goodput, then the lowest median TTFT."""
    trials = [
        Trial(case, one.name, options, TUNING_SEED, int(num_share * case.num_requests))
        for case in cases
        for one in CONTESTANTS
        if len(one.candidates(case)) > 1
        for options in one.candidates(case)
    ]
    best: dict[tuple[str, str], tuple[float, float, Options]] = {}
    for trial, figures in zip(trials, run_all(trials), strict=True):
        key = (trial.case.letter, trial.name)
        merit = (figures.goodput_per_s, -figures.ttft_p50_s)
        if key not in best or merit > best[key][:2]:
            best[key] = (*merit, trial.options)
    return {key: options for key, (_, _, options) in best.items()}


def measured(
    cases: Sequence[RoutingCase], seeds: Sequence[int], chosen: Mapping[tuple[str, str], Options], num_share: float
) -> Iterator[TrialOutcome]:
    """Run every contestant in every case on the reported seeds, with the options that were chosen for it."""
    wanted = [(case, one, _options(case, one, chosen)) for case in cases for one in CONTESTANTS]
    trials = [
        Trial(case, one.name, options, seed, int(num_share * case.num_requests))
        for case, one, options in wanted
        for seed in seeds
    ]
    figures = run_all(trials)
    for at, (case, one, options) in enumerate(wanted):
        yield TrialOutcome(case, one.name, options, tuple(figures[at * len(seeds) : (at + 1) * len(seeds)]))


def _options(case: RoutingCase, one: PolicyContestant, chosen: Mapping[tuple[str, str], Options]) -> Options:
    return chosen.get((case.letter, one.name)) or one.candidates(case)[0]


def finite(value: float) -> float | None:
    """Return a number as JSON has it."""
    return value if math.isfinite(value) else None
