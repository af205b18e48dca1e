"""A gateway's routing in a simulation: the real router over a real registry, with the promises of its own requests."""

import random
from dataclasses import dataclass
from itertools import count

from services.gateway.cluster.assigned import Assignment, PromptWork
from services.gateway.cluster.devices import ServedPrompts
from services.gateway.cluster.promises import PrefillPromise, PrefillPromises
from services.gateway.cluster.registry import Registry
from services.gateway.control.observed import Observations
from services.gateway.placement.index import PlacementIndex
from services.gateway.request.feedback import Feedback
from services.gateway.routing.calibration import Calibration
from services.gateway.routing.plan import Plan, RequestFacts
from services.gateway.routing.policy import RoutingPolicy
from services.gateway.routing.rescue import patience_s
from services.gateway.routing.router import Router
from shared.bus.events import LoadEvent, MembershipEvent
from shared.ids import Datacenter, WorkerId
from simulator.gateways.bus import FINGERPRINT
from simulator.gateways.routes import RouteQuery, SimRoute
from simulator.places import Places


@dataclass(slots=True)
class _Ledger:
    """What a gateway has noted of one request."""

    plan: Plan
    decoding: Assignment | None = None
    prefilling: Assignment | None = None
    promise: PrefillPromise | None = None


class RoutedGateway:
    """A `Dispatcher` and a `BusListener`. `index` is shared by all gateways: they hear the same placements."""

    def __init__(self, places: Places, home: str, number: int, policy: RoutingPolicy, index: PlacementIndex) -> None:
        layout, loop = places.kv.layout, places.loop
        self.registry = Registry(FINGERPRINT, layout.hash, lambda: loop.now_s)
        self._places = places
        self._index = index
        self._router = Router(Datacenter(home), layout, policy, codec="raw")
        self._promises = PrefillPromises()
        self._calibration, self._served = Calibration(), ServedPrompts()
        self._feedback = Feedback(self._calibration, self._served, Observations())
        self._ledgers: dict[SimRoute, _Ledger] = {}
        self._numbers = count()
        self._draw = random.Random(f"{places.scenario.seed} {home} {number}")

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
            on_device=self._served.longest(query.keys),
            excluded=frozenset(WorkerId(worker) for worker in query.excluded),
            output_tokens=query.num_output,
            slo=self._places.scenario.slo,
            draw=self._draw.random(),
            number=next(self._numbers),
        )
        corrections = self._calibration.corrections(self._places.loop.now_s)
        plan = self._router.plan(facts, self.registry.view(), corrections)
        route = self._as_route(plan)
        self._ledgers[route] = _Ledger(plan)
        return route

    def began(self, route: SimRoute, query: RouteQuery) -> None:
        ledger = self._ledgers[route]
        forecast = ledger.plan.forecast
        for use in forecast.crossings:
            self.registry.note_crossing(*use)
        work = PromptWork(forecast.decode_s, forecast.decode_tokens, query.num_tokens)
        ledger.decoding = self.registry.assign(WorkerId(route.decode), work)
        if route.prefill is not None:
            worker = WorkerId(route.prefill)
            ledger.promise = PrefillPromise(worker, query.keys[: ledger.plan.num_blocks])
            self._promises.add(ledger.promise)
            ledger.prefilling = self.registry.assign(worker, PromptWork(forecast.prefill_s, forecast.prefill_tokens))

    def prefilled(self, route: SimRoute) -> None:
        ledger = self._ledgers[route]
        if ledger.promise is not None and ledger.prefilling is not None:
            self._promises.drop(ledger.promise)
            self.registry.release(ledger.prefilling)
            ledger.promise = ledger.prefilling = None

    def first_token(self, route: SimRoute, query: RouteQuery, ttft_s: float | None) -> None:
        self._feedback.first_token(self._ledgers[route].plan, query.keys, ttft_s, self._places.loop.now_s)

    def ended(self, route: SimRoute) -> None:
        ledger = self._ledgers.pop(route)
        if ledger.decoding is not None:
            self.registry.release(ledger.decoding)

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
            ttft_forecast_s=plan.forecast.ttft_s,
            patience_s=patience_s(plan),
        )
