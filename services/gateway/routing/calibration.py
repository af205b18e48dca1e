"""How forecasts compare with what was measured: a line for each kind of plan, so that the next forecast is right."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from services.gateway.routing.plan import PlanKind
from shared.ids import Datacenter


class Correction(NamedTuple):
    """`measured = offset_s + factor * forecast`, on average."""

    offset_s: float = 0.0  # what the model does not know of: calls, threads, the first byte's way
    factor: float = 1.0


AS_FORECAST = Correction()

HAND_OVER = Correction(offset_s=0.01)
"""Of a hand-over that was not measured yet: two calls, claims, grants and leases take that long on any machine."""


def prior_of(kind: PlanKind) -> Correction:
    """Return the correction of a plan before any was measured."""
    return HAND_OVER if kind in ("local", "remote") else AS_FORECAST


Corrections = Mapping[tuple[PlanKind, Datacenter], Correction]
"""By the kind of the plan and the datacenter that prefills; decode's own where none does."""

NO_CORRECTIONS: Corrections = MappingProxyType({})
