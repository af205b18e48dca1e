"""Published figures beside ours."""

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import NamedTuple

import numpy as np

from services.gateway.plan.columns import NONE, TITLES, aligned, number
from services.gateway.plan.schema import PublishedSection, PublishedTables
from services.gateway.routing.planning.case import PlanningCase
from services.gateway.routing.planning.deployments import Deployments
from services.gateway.routing.planning.equations import request_rate_per_s
from services.gateway.routing.planning.loads import stage_loads


class PublishedFigure(NamedTuple):
    """One entry of the table of another."""

    deployment: str  # a field of `Deployments`
    name: str  # a field of `CapacityPlan`
    published: float
    ours: float | None

    @property
    def difference(self) -> float | None:
        """How far ours lies above the published figure, as a part of it."""
        return None if self.ours is None or not self.published else self.ours / self.published - 1

    def to_json(self) -> dict[str, float | str | None]:
        """Return all fields and the difference as JSON has them."""
        return {**self._asdict(), "difference": self.difference}


def beside_ours(published: PublishedTables, ours: Deployments) -> list[PublishedFigure]:
    """Return every published figure with ours, in the order of the file's form."""
    return list(_figures(published, ours))


def _figures(published: PublishedTables, ours: Deployments) -> Iterator[PublishedFigure]:
    for deployment in (field.name for field in fields(ours)):
        section = getattr(published, deployment)
        for name, value in section.model_dump(exclude_none=True).items():
            yield PublishedFigure(deployment, name, value, getattr(getattr(ours, deployment), name))


def recombined(published: PublishedTables, case: PlanningCase) -> list[PublishedFigure]:
    """Return the published Lambda beside the one that equation (6) makes of the published throughputs of stages.

    Only p comes from the case. A deployment without a threshold offloads every request if it has a Th_prfaas, else
    none. One without Lambda or Th_pdd is left out.
    """
    return [
        PublishedFigure(name, "requests_per_s by (6) from published Th", section.requests_per_s, _rate(section, case))
        for name in type(published).model_fields
        if (section := getattr(published, name)).requests_per_s and section.pd_decode_per_s
    ]


def _rate(section: PublishedSection, case: PlanningCase) -> float:
    threshold = section.threshold_tokens
    if threshold is None:
        threshold = 0.0 if section.prfaas_per_s else case.lengths.max_tokens
    loads = stage_loads(case, np.array([threshold]))
    prfaas = np.array([section.prfaas_per_s or np.inf])
    at_home = np.array([section.pd_prefill_per_s or np.inf])
    decode = section.pd_decode_per_s or 0.0
    return float(request_rate_per_s(prfaas, at_home, decode, loads.long_share, loads.short_share)[0])


def published_table(figures: Iterable[PublishedFigure]) -> Iterator[str]:
    """Yield each published figure, ours, and how far ours is off."""
    rows = [("", "", "published", "ours", "difference, %")]
    for figure in figures:
        title, difference = TITLES[figure.deployment], figure.difference
        off = NONE if difference is None else f"{100 * difference:+.1f}"
        rows.append((title, figure.name, f"{figure.published:,g}", number(figure.ours, ",.5g"), off))
    yield from aligned(rows, texts=2)
