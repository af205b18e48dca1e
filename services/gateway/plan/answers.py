"""A file's answer: the plans of a case or the demands of models, as JSON and as text."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from services.gateway.plan.columns import TITLES
from services.gateway.plan.inputs import FileBuilder
from services.gateway.plan.published import PublishedFigure, beside_ours, published_table, recombined
from services.gateway.plan.report import deployments_table, egress_table
from services.gateway.plan.schema import CapacityFile, EgressFile, PublishedTables
from services.gateway.routing.planning.case import Averaging, PlanningCase, WideLink, threshold_grid
from services.gateway.routing.planning.deployments import Deployments, compare_deployments
from services.gateway.routing.planning.egress import EgressDemand, egress_demand
from services.gateway.routing.planning.search import RateSurface, rate_surface

MEANING = {
    Averaging.MEAN_TIME: "throughputs by E[T(L)], the mean of the times",
    Averaging.TIME_OF_MEAN: "throughputs by T(E[L]), the time of the mean length",
}


class PlannerAnswer(Protocol):
    """What the command prints."""

    def to_json(self) -> dict[str, Any]:
        """Return what `json.dumps` takes."""

    def lines(self) -> Iterator[str]:
        """Yield lines for people."""


@dataclass(frozen=True, slots=True)
class CapacityAnswer:
    """The deployments of a file under its averaging, and under the other one."""

    file: CapacityFile
    case: PlanningCase
    surface: RateSurface
    ours: Deployments
    others: Deployments

    def to_json(self) -> dict[str, Any]:
        met = self._slo_met()
        return {
            "title": self.file.title,
            "averaging": self.case.averaging,
            "plans": _plans(self.ours),
            "plans_by_other_averaging": _plans(self.others),
            "slo": {"ttft_p90_s": self.file.slo.ttft_p90_s, "met_when_idle": met} if met else None,
            "published": [figure.to_json() for figure in self.published()],
        }

    def lines(self) -> Iterator[str]:
        yield self.file.title or "Capacity"
        yield f"{MEANING[self.case.averaging]}; TTFT of an empty system"
        yield ""
        yield from deployments_table(self.ours)
        yield ""
        plan, other = self.ours.prfaas_pd, self.others.prfaas_pd
        yield (
            f"{MEANING[other.averaging]}: Lambda {other.requests_per_s:.2f} "
            f"({_change(plan.requests_per_s, other.requests_per_s)}), "
            f"homogeneous {self.others.homogeneous_pd.requests_per_s:.2f}, "
            f"naive {self.others.naive_heterogeneous.requests_per_s:.2f}"
        )
        if met := self._slo_met():
            verdicts = (f"{TITLES[name]} {'meets' if is_met else 'misses'} it" for name, is_met in met.items())
            yield f"SLO of TTFT P90 ({self.file.slo.ttft_p90_s:g} s) in an empty system: {', '.join(verdicts)}"
        if self.file.published is not None:
            yield ""
            yield from published_table(self.published())

    def _slo_met(self) -> dict[str, bool]:
        limit_s = self.file.slo.ttft_p90_s
        if limit_s is None:
            return {}
        return {field.name: getattr(self.ours, field.name).ttft_p90_s <= limit_s for field in fields(self.ours)}

    def published(self) -> list[PublishedFigure]:
        """Return the file's figures of others beside ours; none if it has none."""
        tables = self.file.published or PublishedTables()
        return [*beside_ours(tables, self.ours), *recombined(tables, self.case)]


@dataclass(frozen=True, slots=True)
class EgressAnswer:
    """What models need of a link."""

    file: EgressFile
    demands: tuple[EgressDemand, ...]

    def to_json(self) -> dict[str, Any]:
        models = [demand.to_json() for demand in self.demands]
        return {"title": self.file.title, "instances": self.file.instances, "models": models}

    def lines(self) -> Iterator[str]:
        link = self.file.link
        yield self.file.title or "Egress"
        yield (
            f"left: Gbit/s that {self.file.instances} instances need, by prompt length; "
            f"right: instances that {link.capacity_gbit_s * link.usable_share:g} Gbit/s carries"
        )
        yield ""
        yield from egress_table(self.demands)


def capacity_answer(file: CapacityFile, builder: FileBuilder) -> CapacityAnswer:
    """Search the best division of a file's case. Raises `SettingsError`."""
    case = builder.case(file)
    (other,) = (averaging for averaging in Averaging if averaging is not case.averaging)
    surface = _surface(case, file)
    num_homogeneous = file.homogeneous.instances if file.homogeneous else None
    otherwise = replace(case, averaging=other)
    others = compare_deployments(otherwise, _surface(otherwise, file), num_homogeneous)
    return CapacityAnswer(file, case, surface, compare_deployments(case, surface, num_homogeneous), others)


def egress_answer(file: EgressFile, builder: FileBuilder) -> EgressAnswer:
    """Work out what a file's models need. Raises `SettingsError`."""
    link = WideLink(file.link.capacity_gbit_s, file.link.usable_share)
    demands = []
    for name, section in file.models.items():
        key = f"models.{name}.kv_gbit_s"
        profile = builder.profile(key, section.kv_gbit_s)
        with builder.at(key):
            demands.append(egress_demand(name, profile, file.tokens, file.instances, link))
    return EgressAnswer(file, tuple(demands))


def _surface(case: PlanningCase, file: CapacityFile) -> RateSurface:
    return rate_surface(case, threshold_grid(case.lengths, file.search.step_tokens))


def _plans(deployments: Deployments) -> dict[str, Any]:
    return {field.name: getattr(deployments, field.name).to_json() for field in fields(deployments)}


def _change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.1f} %" if before else "none at all"
