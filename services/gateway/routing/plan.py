"""What routing is asked and what it answers. Data only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from services.gateway.cluster.devices import OnDevice
from services.gateway.cluster.workers import Member
from services.gateway.placement.held import HeldPrefix
from shared.ids import BlockKey, Datacenter, WorkerId
from shared.kv.codec import Codec, Fidelity
from shared.kv.entries import Source

PlanKind = Literal["none", "local", "remote", "decode_only"]


class Slo(NamedTuple):
    """What a request, or the service, asks for. None asks nothing."""

    ttft_s: float | None = None
    time_per_output_token_s: float | None = None


NO_SLO = Slo()


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What the router knows of a request and of its prefix."""

    num_tokens: int
    keys: Sequence[BlockKey]  # of all full blocks
    held: Mapping[WorkerId, HeldPrefix] = field(default_factory=dict)  # by pool node
    promised: Mapping[WorkerId, int] = field(default_factory=dict)  # leading blocks a prefill worker computes right now
    on_device: OnDevice | None = None  # what a decode worker has of it, most likely
    excluded: frozenset[WorkerId] = frozenset()  # workers that have failed this request
    fidelity: Fidelity = Fidelity.LOSSLESS  # the chain that `keys` are of
    output_tokens: int = 0  # that the answer may have
    slo: Slo = NO_SLO
    is_scored: bool = False  # decode has to compute all tokens behind those of `keys` itself
    draw: float = 0.0  # in [0, 1): what chance decides is decided by it, so that equal inputs give equal plans
    number: int = 0  # of the plan among its gateway's: policies that take turns keep no count of their own


class LinkUse(NamedTuple):
    """KV that a plan lets cross from one datacenter to another."""

    source: Datacenter
    target: Datacenter
    num_bytes: float  # before any codec


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a plan is expected to take, and what it makes others wait for."""

    ttft_s: float  # until the first token
    model_s: float  # the same, before what was measured of such plans corrected it
    time_per_output_token_s: float
    prefill_s: float = 0.0  # of the prefill worker's model
    prefill_tokens: float = 0.0
    decode_s: float = 0.0  # of the decode worker's model, for the prompt
    decode_tokens: float = 0.0
    crossings: tuple[LinkUse, ...] = ()
    fetch_after_s: float = 0.0  # until decode asks its pool for blocks, which then are the link's reported backlog

    @property
    def work_s(self) -> float:
        """Model time that the prompt costs, wherever."""
        return self.prefill_s + self.decode_s


class ComparedWay(NamedTuple):
    """A way to serve a prompt that a policy has compared with others."""

    kind: PlanKind
    member: Member  # who computes what no cache has
    cached_blocks: int  # leading blocks that it takes from caches
    cost_s: float  # by which it was compared
    ttft_s: float  # until the first token
    is_chosen: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The router's decision. `sources` name the pools that the worker's own pool pulls absent blocks from.

    Everybody who carries the plan out hashes blocks over the same lists of nodes, while membership may change.
    """

    kind: PlanKind
    home_dc: Datacenter
    decode: Member
    prefill: Member | None
    prefill_spares: tuple[Member, ...]  # of its datacenter, best first: the plan holds for them too
    num_blocks: int  # that decode can count on, from caches or from prefill
    usable_blocks: int  # leading blocks that some pool holds already, and that the plan uses
    decode_nodes: tuple[str, ...]  # pool nodes of the worker's datacenter; none known: the worker's own setting
    prefill_nodes: tuple[str, ...]
    decode_sources: tuple[Source, ...]
    prefill_sources: tuple[Source, ...]
    prefill_codec: Codec
    decode_codec: Codec  # of the blocks that decode computes, for its own datacenter
    forecast: Forecast
    alone_s: float = math.inf  # of decode, until the first token, with the blocks of home alone; infinite: not known
    ways: tuple[ComparedWay, ...] = ()  # some that were compared, the cheapest first; for who wants to know why

    @property
    def crosses(self) -> bool:
        """Whether decode's blocks come from another datacenter."""
        return any(source.dc != self.home_dc for source in self.decode_sources)


def sources_text(sources: Sequence[Source]) -> list[str]:
    """Return sources as a log line shows them."""
    return [f"{s.first}-{s.end}@{s.dc}" for s in sources]
