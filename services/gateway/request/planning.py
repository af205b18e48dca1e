"""A request meets the state of the cluster: its plan, in the chain of keys that it is for."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Protocol

from services.gateway.cluster.devices import ServedPrompts
from services.gateway.cluster.promises import PrefillPromises
from services.gateway.cluster.registry import NO_WAITS, Registry
from services.gateway.metrics import GatewayMetrics
from services.gateway.placement.held import HeldPrefix
from services.gateway.request.generation import GenerationRequest
from services.gateway.routing.calibration import Calibration
from services.gateway.routing.plan import Plan, RequestFacts, sources_text
from services.gateway.routing.router import Router, prefers_exact
from shared.ids import BlockKey, WorkerId
from shared.kv.codec import Fidelity
from shared.log import get_logger

log = get_logger()


class Placements(Protocol):
    """What planning asks of the placement index."""

    def held(self, keys: Sequence[BlockKey], now: float) -> Mapping[WorkerId, HeldPrefix]: ...


class Planner:
    """Gathers what routing needs to know; decides nothing itself."""

    def __init__(
        self,
        router: Router,
        placements: Placements,
        promises: PrefillPromises,
        registry: Registry,
        served: ServedPrompts,
        calibration: Calibration,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`draw` returns numbers of [0, 1) at random."""
        self._router = router
        self._placements = placements
        self._promises = promises
        self._registry = registry
        self._served = served
        self._calibration = calibration
        self._metrics = metrics
        self._clock = clock
        self._draw = draw
        self._numbers = count()

    def plan(
        self, request: GenerationRequest, excluded: frozenset[WorkerId], waits: Mapping[WorkerId, float] = NO_WAITS
    ) -> tuple[GenerationRequest, Plan]:
        """Return the plan, and the request with the keys of the chain that the plan is for. Raises `NoWorker`.

        `waits`: seconds until a worker may be sent the request. Nothing remembers a plan until it is `carried_out`.
        """
        plan = self._plan_for(request, excluded, waits)
        if request.fidelity is not Fidelity.LOSSLESS:
            exact = replace(request, keys=request.lossless_keys, fidelity=Fidelity.LOSSLESS)
            exact_plan = self._plan_for(exact, excluded, waits)
            if prefers_exact(exact_plan, plan):
                request, plan = exact, exact_plan
        return request, plan

    def carried_out(self, request: GenerationRequest, plan: Plan) -> None:
        """Note a plan that is being carried out, in the request's chain of keys."""
        for use in plan.forecast.crossings:
            self._registry.note_crossing(*use, after_s=plan.forecast.fetch_after_s)
        self._metrics.planned(plan.kind)
        log.info(
            "request_planned",
            kind=plan.kind,
            num_tokens=len(request.token_ids),
            num_blocks=plan.num_blocks,
            usable_blocks=plan.usable_blocks,
            decode=plan.decode.worker,
            prefill=plan.prefill.worker if plan.prefill else None,
            decode_sources=sources_text(plan.decode_sources),
            prefill_sources=sources_text(plan.prefill_sources),
            fidelity=request.fidelity.name.lower(),
            codec=plan.prefill_codec.name.lower(),
            forecast_ttft_s=round(plan.forecast.ttft_s, 4),
            alone_s=round(plan.alone_s, 4),
        )

    def _plan_for(
        self, request: GenerationRequest, excluded: frozenset[WorkerId], waits: Mapping[WorkerId, float]
    ) -> Plan:
        keys = request.reusable_keys(self._router.layout.block_tokens)
        facts = RequestFacts(
            num_tokens=len(request.token_ids),
            keys=keys,
            held=self._placements.held(keys, self._clock()) if keys else {},
            promised=self._promises.longest(keys),
            on_device=self._served.longest(keys),
            excluded=excluded,
            is_scored=request.scoring is not None,
            fidelity=request.fidelity,
            output_tokens=request.sampling.max_tokens,
            slo=request.slo,
            draw=self._draw(),
            number=next(self._numbers),
        )
        return self._router.plan(facts, self._registry.view(waits), self._calibration.corrections(self._clock()))
