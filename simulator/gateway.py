"""A gateway's routing in a simulation: the real router over a real registry, with the promises of its own requests."""

from services.gateway.cluster.promises import PrefillPromise, PrefillPromises
from services.gateway.cluster.registry import Registry
from services.gateway.placement.index import PlacementIndex
from services.gateway.routing.plan import Plan, RequestFacts
from services.gateway.routing.policy import RoutingPolicy
from services.gateway.routing.router import Router
from shared.bus.events import LoadEvent, MembershipEvent
from shared.ids import Datacenter, WorkerId
from simulator.bus import FINGERPRINT
from simulator.places import Places
from simulator.routes import RouteQuery, SimRoute


class RoutedGateway:
    """A `Dispatcher` and a `BusListener`. `index` is shared by all gateways: they hear the same placements."""

    def __init__(self, places: Places, home: str, policy: RoutingPolicy, index: PlacementIndex) -> None:
        layout = places.kv.layout
        self.registry = Registry(FINGERPRINT, layout.hash)
        self._places = places
        self._index = index
        self._router = Router(Datacenter(home), layout, policy, codec="raw")
        self._promises = PrefillPromises()
        self._kept: dict[SimRoute, PrefillPromise] = {}

    def apply_membership(self, event: MembershipEvent, now: float) -> None:
        self.registry.apply_membership(event, now)

    def apply_load(self, event: LoadEvent, now: float) -> None:
        self.registry.apply_load(event, now)

    def route(self, query: RouteQuery) -> SimRoute:
        facts = RequestFacts(
            num_tokens=query.num_tokens,
            keys=query.keys,
            held=self._index.held(query.keys, self._places.loop.now_s) if query.keys else {},
            promised=self._promises.longest(query.keys),
            excluded=frozenset(WorkerId(worker) for worker in query.excluded),
        )
        return self._as_route(self._router.plan(facts, self.registry.view()))

    def began(self, route: SimRoute, query: RouteQuery) -> None:
        self.registry.assign(WorkerId(route.decode))
        if route.prefill is not None:
            self.registry.assign(WorkerId(route.prefill))
            num_blocks = route.ready_tokens // self._places.kv.block_tokens
            promise = PrefillPromise(WorkerId(route.prefill), query.keys[:num_blocks])
            self._promises.add(promise)
            self._kept[route] = promise

    def prefilled(self, route: SimRoute) -> None:
        promise = self._kept.pop(route, None)
        if promise is not None:
            self._promises.drop(promise)
            self.registry.release(promise.worker)

    def ended(self, route: SimRoute) -> None:
        self.registry.release(WorkerId(route.decode))

    def lost(self, worker: str) -> None:
        self.registry.lost(WorkerId(worker))

    def _as_route(self, plan: Plan) -> SimRoute:
        return SimRoute(
            kind=plan.kind,
            decode=plan.decode.worker,
            prefill=plan.prefill.worker if plan.prefill else None,
            prefill_spares=tuple(spare.worker for spare in plan.prefill_spares),
            ready_tokens=plan.num_blocks * self._places.kv.block_tokens,
            decode_sources=plan.decode_sources,
            prefill_sources=plan.prefill_sources,
        )
