"""How forecasts compare with what was measured: a line for each kind of plan, so that the next forecast is right."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from services.gateway.routing.plan import Plan, PlanKind
from shared.ids import Datacenter
from shared.measuring.fitting import OnlineFit


class Correction(NamedTuple):
    """`measured = offset_s + factor * forecast`, on average."""

    offset_s: float  # what the model does not know of: calls, threads, the first byte's way
    factor: float = 1.0


AS_FORECAST = Correction(0.002)
"""Of a plan that was not measured yet: a call to a worker and a token back."""

HAND_OVER = Correction(0.01)
"""The same of a hand-over: two calls, claims, grants and leases take that long on any machine."""

Corrections = Mapping[tuple[PlanKind, Datacenter], Correction]
"""By the kind of the plan and the datacenter that prefills; decode's own where none does."""

NO_CORRECTIONS: Corrections = MappingProxyType({})

MAX_FACTOR = 2.0
MAX_OFFSET_S = 0.05
"""What is measured counts within these bounds of the forecast. What is farther off is a fault or a link that has just
changed: links and workers are measured themselves, and a correction that learnt it would outlast it."""

FORGOTTEN_AFTER_S = 300.0
"""After so long without a measurement a correction weighs 1/e, and its prior the rest: a way that was given up is
tried again."""


def prior_of(kind: PlanKind) -> Correction:
    """Return the correction of a plan before any was measured."""
    return HAND_OVER if kind in ("local", "remote") else AS_FORECAST


@dataclass(slots=True)
class _Learnt:
    prior: Correction
    fit: OnlineFit
    measured_at: float

    def at(self, now: float) -> Correction:
        share = math.exp(-(now - self.measured_at) / FORGOTTEN_AFTER_S)
        learnt = self.fit.coefficients
        return Correction(*(share * new + (1 - share) * old for new, old in zip(learnt, self.prior, strict=True)))


class Calibration:
    """Learns corrections from first tokens. Holds a fit for each kind of plan and datacenter."""

    def __init__(self) -> None:
        self._learnt: dict[tuple[PlanKind, Datacenter], _Learnt] = {}

    def measured(self, plan: Plan, ttft_s: float, now: float) -> None:
        """Note when the first token of a plan has come."""
        key = plan.kind, plan.home_dc if plan.prefill is None else plan.prefill.dc
        if key not in self._learnt:
            prior = prior_of(plan.kind)
            self._learnt[key] = _Learnt(prior, OnlineFit(prior), now)
        learnt, model_s = self._learnt[key], plan.forecast.model_s
        learnt.fit.measured((1.0, model_s), min(max(ttft_s, model_s / MAX_FACTOR), MAX_FACTOR * model_s + MAX_OFFSET_S))
        learnt.measured_at = now

    def corrections(self, now: float) -> Corrections:
        return {key: learnt.at(now) for key, learnt in self._learnt.items()}
