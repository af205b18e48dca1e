"""From what was measured and observed to a planning case: home is the PD cluster, who else prefills is PrfaaS. Pure."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.gateway.cluster.view import RegistryView
from services.gateway.cluster.workers import NOBODY, Rows
from services.gateway.control.hardware import PooledPrefill, best_known, decode_point, is_measured
from services.gateway.control.observed import Observed
from services.gateway.control.ways import LinkTerms, WideWay
from services.gateway.routing.planning.case import (
    BYTES_PER_GBIT,
    PdCluster,
    PlanningCase,
    PrfaasCluster,
    WideLink,
)
from services.gateway.routing.planning.lengths import EmpiricalLengths
from shared.ids import Datacenter
from shared.kv.layout import KvLayout

MIN_REQUESTS = 50
"""Before so many requests nothing is decided: the share of requests that a tenth of them make is then known to four
points (a standard error)."""


DEFLECTED = 0.1
"""From this share of prompts on that decode computes alone, an answer says that the paper's model has none of them."""


@dataclass(frozen=True, slots=True)
class PlanningTerms:
    """What does not change while a gateway runs."""

    home: Datacenter
    layout: KvLayout
    links: LinkTerms
    time_per_output_token_s: float  # that decode is planned for
    max_batch: int  # of a decode worker
    target_utilisation: float  # of the stage that binds, 0 to 1


@dataclass(frozen=True, slots=True, eq=False)
class Fleet:
    """The workers that plans are made for, by their part in the paper's model: rows of `WORKER`."""

    away: Rows = field(default_factory=lambda: NOBODY.rows)  # prefill workers of other datacenters
    prefill: Rows = field(default_factory=lambda: NOBODY.rows)  # at home
    decode: Rows = field(default_factory=lambda: NOBODY.rows)  # at home

    @property
    def known_at_home(self) -> Rows:
        """Workers whose measurements stand for prefill at home: if none there has measured, those who decode."""
        return _measured(self.prefill, best_known(self.decode))

    @property
    def known_away(self) -> Rows:
        """Workers whose measurements stand for prefill elsewhere: if none there has measured, home's."""
        return _measured(self.away, self.known_at_home)


def _measured(rows: Rows, otherwise: Rows) -> Rows:
    measured = is_measured(rows)
    return rows[measured] if measured.any() else otherwise


def fleet_of(view: RegistryView, home: Datacenter) -> Fleet:
    """Sort the workers of a cluster."""
    if home not in view.dcs:
        return Fleet(view.prefill.rows)
    number, prefill, decode = view.dcs.index(home), view.prefill.rows, view.decode.rows
    is_home = prefill["dc"] == number
    return Fleet(prefill[~is_home], prefill[is_home], decode[decode["dc"] == number])


@dataclass(frozen=True, slots=True)
class LayoutKvBytes:
    """S_kv of a KV layout: a resume after a prompt needs all blocks of full layers and the last ones of windows."""

    layout: KvLayout

    def __call__(self, tokens: NDArray[np.float64], /) -> NDArray[np.float64]:
        num_blocks, which = np.unique(np.ceil(tokens / self.layout.block_tokens).astype(int), return_inverse=True)
        return np.array([self.layout.resume_bytes(0, number) for number in num_blocks.tolist()], np.float64)[which]


def obstacles(fleet: Fleet, observed: Observed, home: Datacenter) -> list[str]:
    """Return why no plan can be made, as sentences; empty if one can."""
    found = []
    if not len(fleet.decode):
        found.append(f"no decode worker is known in {home}")
    if not observed.num_requests or not len(observed.output_tokens):
        found.append("no request has been answered yet")
    return found


def doubts(fleet: Fleet, observed: Observed, home: Datacenter) -> list[str]:
    """Return why a plan decides nothing yet, as sentences; empty if it may."""
    found = []
    if observed.num_requests < MIN_REQUESTS:
        found.append(f"{observed.num_requests} of the {MIN_REQUESTS} requests that a decision takes were seen")
    if not is_measured(fleet.decode).any():
        found.append(f"no decode worker in {home} has measured its steps")
    return found


def assumptions(fleet: Fleet, observed: Observed, ways: tuple[WideWay, ...], home: Datacenter) -> list[str]:
    """Return what a plan takes for granted, as sentences."""
    found = [
        f"the link from {way.source} was not measured: {way.bytes_per_s * 8 / 1e9:.3g} Gbit/s of KV are assumed"
        for way in ways
        if not way.is_measured
    ]
    if not is_measured(fleet.prefill).any():
        found.append(f"no prefill worker in {home} has measured its steps: decode workers stand for them")
    if len(fleet.away) and not is_measured(fleet.away).any():
        sources = ", ".join(way.source for way in ways)
        found.append(f"no prefill worker in {sources} has measured its steps: those of {home} stand for them")
    alone = observed.kinds.get("decode_only", 0)
    if alone > DEFLECTED * observed.num_requests:
        found.append(f"decode computed {alone} of {observed.num_requests} prompts alone: prefill is planned for all")
    return found


def planning_case(fleet: Fleet, observed: Observed, ways: tuple[WideWay, ...], terms: PlanningTerms) -> PlanningCase:
    """Make the case of a fleet without obstacles. Raises ValueError for profiles that are not positive.

    Several other datacenters make one PrfaaS cluster: their instances and the rates of their links are added.
    """
    uncached, output = observed.uncached_tokens, float(observed.output_tokens.mean())
    cached = max(0.0, float((observed.prompt_tokens - uncached).mean()))
    context = float(observed.prompt_tokens.mean()) + output / 2  # half of an answer is there, on average
    decoding = decode_point(best_known(fleet.decode), context, terms.time_per_output_token_s, terms.max_batch)
    at_home, away = (PooledPrefill(rows, cached) for rows in (fleet.known_at_home, fleet.known_away))
    link = sum(way.bytes_per_s for way in ways) or terms.links.unknown_bytes_per_s
    return PlanningCase(
        lengths=EmpiricalLengths.of(uncached.tolist()),
        output_tokens=output,
        kv_bytes=LayoutKvBytes(terms.layout),
        prfaas=PrfaasCluster(away, (len(fleet.away),)),
        pd=PdCluster(at_home, decoding, len(fleet.prefill) + len(fleet.decode)),
        link=WideLink(link / BYTES_PER_GBIT),
    )
