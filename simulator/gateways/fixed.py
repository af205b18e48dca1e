"""Routing without a router, for validation: workers in turn, caches of one datacenter alone, no bus."""

from collections.abc import Sequence
from itertools import cycle

from shared.ids import Datacenter
from shared.kv.entries import Source
from simulator.gateways.routes import RouteQuery, SimRoute
from simulator.places import Places


class TurnsDispatcher:
    """Sends requests to decode workers in turn and, if there are prefill workers, to those in turn.

    The prefill worker computes the whole prompt behind what its own datacenter's pool holds, and all of the prompt's
    KV goes to decode, whatever is held there.
    """

    def __init__(self, places: Places, decode: Sequence[str], prefill: Sequence[str]) -> None:
        self._places = places
        self._decode = cycle(decode)
        self._prefill = cycle(prefill) if prefill else None

    def route(self, query: RouteQuery) -> SimRoute:
        decode = next(self._decode)
        if self._prefill is None:
            return SimRoute("decode_only", decode, None, (), 0, (), ())
        prefill = next(self._prefill)
        dc = self._places.dc_of(prefill)
        sources: tuple[Source, ...] = ()
        if dc != self._places.dc_of(decode):
            sources = (Source(0, len(query.keys), Datacenter(dc), (self._places.pools[dc].address,)),)
        return SimRoute("remote" if sources else "local", decode, prefill, (), query.num_tokens, sources, ())

    def began(self, route: SimRoute, query: RouteQuery) -> None:
        pass

    def prefilled(self, route: SimRoute) -> None:
        pass

    def first_token(self, route: SimRoute, query: RouteQuery, ttft_s: float | None) -> None:
        pass

    def ended(self, route: SimRoute) -> None:
        pass

    def lost(self, worker: str) -> None:
        pass
