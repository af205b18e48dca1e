"""How a request is sent: what dispatchers are asked and what they answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from shared.ids import BlockKey
from shared.kv.entries import Source


class RouteQuery(NamedTuple):
    """A request, or what is left of one."""

    num_tokens: int
    num_output: int
    keys: Sequence[BlockKey]
    excluded: frozenset[str]  # workers that have failed it


@dataclass(frozen=True, slots=True, eq=False)
class SimRoute:
    """A plan in a simulation's terms: names of workers, tokens instead of blocks.

    `decode_sources` and `prefill_sources` are as in `Plan`.
    """

    kind: str
    decode: str
    prefill: str | None
    prefill_spares: tuple[str, ...]
    ready_tokens: int  # leading tokens that decode need not compute once all has arrived
    decode_sources: tuple[Source, ...]
    prefill_sources: tuple[Source, ...]
    ttft_forecast_s: float = float("nan")  # as the router predicts it
    patience_s: float | None = None  # how long decode waits for KV before it computes; None: as long as it takes


class Dispatcher(Protocol):
    """One gateway's routing. The simulation tells it what a gateway sees of its own requests."""

    def route(self, query: RouteQuery) -> SimRoute:
        """Decide. Raises `NoWorker`, or `Overloaded` for a request that is not admitted."""

    def began(self, route: SimRoute, query: RouteQuery) -> None:
        """The request is on its way."""

    def prefilled(self, route: SimRoute) -> None:
        """Its prefill call is over."""

    def first_token(self, route: SimRoute, query: RouteQuery, ttft_s: float | None) -> None:
        """Its first token has come, so long after the plan was made; None: decode has computed what was late."""

    def ended(self, route: SimRoute) -> None:
        """Its decode call is over."""

    def lost(self, worker: str) -> None:
        """A call to a worker has failed."""
