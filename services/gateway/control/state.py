"""What the controller believes, and how one look after the other changes it. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from services.gateway.cluster.view import RegistryView
from services.gateway.cluster.workers import Workers
from services.gateway.control.believed import ProbedTokens, Thresholds, shown_after, thresholds_of
from services.gateway.control.case import PlanningTerms
from services.gateway.control.evaluation import Evaluation, evaluate
from services.gateway.control.observed import Observed
from services.gateway.control.settled import Settled
from services.gateway.control.ways import WideWay, ways_home
from services.gateway.routing.calibration import NO_CORRECTIONS, Corrections
from services.gateway.routing.plan import Plan, RequestFacts
from shared.ids import Datacenter

PLAN_EVERY_S = 30.0
"""Autoscalers look every 15 to 30 s, and a worker takes longer than that to start."""

LOOKS_TO_SWITCH = 2
"""Looks in a row that must see a link so before its mode is another."""

ABUNDANT = Settled(False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster and its requests at one moment; nothing in it changes later."""

    at: float
    view: RegistryView
    observed: Observed
    corrections: Corrections

    @classmethod
    def of(
        cls, at: float, view: RegistryView, observed: Observed, corrections: Corrections = NO_CORRECTIONS
    ) -> "Snapshot":
        """Copy what a view shares with the registry."""
        decode, prefill = (Workers(tuple(w.members), w.rows.copy()) for w in (view.decode, view.prefill))
        return cls(at, replace(view, decode=decode, prefill=prefill), observed, corrections)


@dataclass(frozen=True, slots=True)
class Looking:
    """What a controller looks with; it does not change while a gateway runs."""

    plan: Callable[[RequestFacts, RegistryView, Corrections], Plan]  # routing itself
    lengths: ProbedTokens
    terms: PlanningTerms


@dataclass(frozen=True, slots=True)
class ControlState:
    """The outcome of the latest looks."""

    snapshot: Snapshot
    ways: tuple[WideWay, ...]
    thresholds: Settled[Thresholds]  # as shown
    thresholds_now: Thresholds
    scarce: Mapping[Datacenter, Settled[bool]]  # by where the link comes from
    evaluation: Evaluation
    evaluated_at: float

    @property
    def is_scarce(self) -> bool:
        """Whether the paper's bandwidth-scarce mode holds: for some link that prefill would use."""
        return any(scarce.value for scarce in self.scarce.values())

    def is_due(self, now: float) -> bool:
        """Return whether it is time for another plan: at each look until there is one."""
        return self.evaluation.current is None or now - self.evaluated_at >= PLAN_EVERY_S


def looked(state: ControlState | None, snapshot: Snapshot, looking: Looking) -> ControlState:
    """Return the state after one more look. `state`: the one before, if there was a look before."""
    output, terms = snapshot.observed.output_tokens, looking.terms
    expected = int(np.mean(output)) if len(output) else 0
    view, corrections = snapshot.view, snapshot.corrections
    now = thresholds_of(lambda request: looking.plan(request, view, corrections), view, looking.lengths, expected)
    ways = ways_home(snapshot.view, terms.home, terms.links, snapshot.observed.crossing_bytes_per_s)
    if state is None or state.is_due(snapshot.at):
        wanted = None if state is None else state.evaluation.wanted
        evaluation, evaluated_at = evaluate(snapshot.view, snapshot.observed, ways, terms, wanted), snapshot.at
    else:
        evaluation, evaluated_at = state.evaluation, state.evaluated_at
    return ControlState(
        snapshot=snapshot,
        ways=ways,
        thresholds=Settled(now) if state is None else shown_after(state.thresholds, now),
        thresholds_now=now,
        scarce={way.source: _mode_after(state, way) for way in ways},
        evaluation=evaluation,
        evaluated_at=evaluated_at,
    )


def _mode_after(state: ControlState | None, way: WideWay) -> Settled[bool]:
    shown = ABUNDANT if state is None else state.scarce.get(way.source, ABUNDANT)
    is_scarce = way.is_scarce(shown.value)
    return shown.after(is_scarce, is_other=is_scarce != shown.value, looks=LOOKS_TO_SWITCH)
