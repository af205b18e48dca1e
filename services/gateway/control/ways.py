"""The links that KV crosses on its way home: what they carry, what waits there, whether bandwidth is scarce. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from services.gateway.cluster.view import RegistryView
from services.gateway.cluster.workers import Workers
from services.gateway.routing.codec import Way, choose_codec, kv_bytes_per_s, way_between
from shared.ids import Datacenter
from shared.kv.codec import Fidelity

SCARCE_USE = 0.8
"""From this share of a link's rate on bandwidth is scarce: four transfers then wait (M/M/1: use / (1 - use))."""

ABUNDANT_USE = 0.6
"""Up to it bandwidth is abundant again: one and a half transfers wait."""

SCARCE_BACKLOG_S = 1.0
"""The same by how long a link takes for all that waits: readers notice a second."""

ABUNDANT_BACKLOG_S = 0.25
"""A single long prompt leaves as much."""


CrossingRates = Mapping[tuple[Datacenter, Datacenter], float]
"""Bytes/s of KV that cross, from where to where."""


class LinkTerms(NamedTuple):
    """What routing takes for granted of links."""

    codec: str  # the setting
    unknown_bytes_per_s: float  # of a link that nobody has measured


@dataclass(frozen=True, slots=True)
class WideWay:
    """What is known of the way from a datacenter that prefills to home."""

    source: Datacenter
    target: Datacenter
    bytes_per_s: float  # of KV before the codec that routing would choose
    is_measured: bool
    backlog_s: float
    round_trip_s: float  # 0: not known
    crossing_bytes_per_s: float  # of KV that plans let cross lately

    @property
    def use(self) -> float:
        """Share of the link's rate that crosses."""
        return self.crossing_bytes_per_s / self.bytes_per_s

    def is_scarce(self, was_scarce: bool) -> bool:
        """Return whether bandwidth is scarce: the way back asks for more than the way there."""
        if was_scarce:
            return self.use > ABUNDANT_USE or self.backlog_s > ABUNDANT_BACKLOG_S
        return self.use > SCARCE_USE or self.backlog_s > SCARCE_BACKLOG_S


def ways_home(view: RegistryView, home: Datacenter, terms: LinkTerms, crossing: CrossingRates) -> tuple[WideWay, ...]:
    """Return the way from each other datacenter with prefill workers. Empty where home is not known yet."""
    if home not in view.dcs:
        return ()
    number = view.dcs.index(home)
    sources = sorted({dc for dc in view.prefill.rows["dc"].tolist() if dc != number})
    return tuple(_way(view, source, number, terms, crossing) for source in sources)


def _way(
    view: RegistryView,
    source: int,
    target: int,
    terms: LinkTerms,
    crossing: CrossingRates,
) -> WideWay:
    dcs = view.dcs[source], view.dcs[target]
    maker, user = view.prefill.one_in(source), view.decode.one_in(target) or view.prefill.one_in(target)
    way = Way(*dcs, float(view.links.goodput_bytes_per_s[source, target]))
    if maker is not None and user is not None:
        way = way_between(view.dcs, view.links, maker, user)
    chosen, goodput = choose_codec(terms.codec, Fidelity.LOSSLESS, way), way.goodput_bytes_per_s
    pooled = way._replace(
        goodput_bytes_per_s=goodput or terms.unknown_bytes_per_s,
        encode_threads=_threads(view.prefill, source),
        decode_threads=_threads(view.decode, target),
    )
    bytes_per_s = kv_bytes_per_s(chosen, pooled)
    return WideWay(
        source=dcs[0],
        target=dcs[1],
        bytes_per_s=bytes_per_s,
        is_measured=goodput > 0,
        backlog_s=float(view.links.backlog_bytes[source, target]) / bytes_per_s,
        round_trip_s=float(view.links.round_trip_s[source, target]),
        crossing_bytes_per_s=crossing.get(dcs, 0.0),
    )


def _threads(workers: Workers, dc: int) -> int:
    """Return the codec threads of all workers of a datacenter: what they pass on together."""
    there = workers.where(workers.rows["dc"] == dc)
    return max(1, sum(member.codec_threads for member in there))
