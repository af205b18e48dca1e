"""One request's life after validation: plan, attempt, and when a decode worker is lost, the rest on another."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from services.gateway.cluster.view import Cluster
from services.gateway.request.attempt import Attempt, HandOffTerms, TokenEvent
from services.gateway.request.generation import GenerationRequest, with_keys
from services.gateway.request.usage import Tally
from services.gateway.routing.plan import Plan, RequestFacts, sources_text
from services.gateway.routing.router import Router, prefers_exact
from shared.deadline import Deadline
from shared.errors import NoWorker, Overloaded, PrfaasError, Unavailable
from shared.ids import WorkerId
from shared.kv.codec import Fidelity
from shared.log import get_logger

log = get_logger()

MAX_ATTEMPTS = 3
"""Decode workers that one request may be tried on."""


class Pipeline:
    """Runs requests and keeps nothing of them: every call is over before its iterator is."""

    def __init__(self, cluster: Cluster, router: Router, hand_off: HandOffTerms) -> None:
        self.cluster = cluster
        self._router = router
        self._hand_off = hand_off

    async def generate(
        self, request: GenerationRequest, tally: Tally, deadline: Deadline
    ) -> AsyncGenerator[TokenEvent, None]:
        """Yield tokens until one event has a finish reason. Close the iterator (`aclosing`) to cancel.

        When a decode worker is lost, another continues from the prompt and the tokens so far: sampling depends on
        seed and position alone, so it goes on as the first one would have. Raises `NoWorker`, `WorkerLost`,
        `DeadlineExceeded`, `Overloaded` and whatever else decode answers.
        """
        generated: list[int] = []
        excluded: set[WorkerId] = set()
        failure: PrfaasError | None = None
        for _ in range(MAX_ATTEMPTS):
            rest = self._rest(request, generated)
            try:
                rest, plan = self._plan(rest, frozenset(excluded))
            except NoWorker as nobody:
                raise failure or nobody from None
            attempt = Attempt(self.cluster, plan, rest, tally, deadline, self._hand_off)
            try:
                async with aclosing(attempt.tokens()) as events:
                    async for event in events:
                        generated += event.ids
                        yield event
                return
            except (Unavailable, Overloaded) as error:
                failure = error
                excluded.add(plan.decode.worker)
                self._note_failure(plan, error, len(generated))
            if len(generated) >= request.sampling.max_tokens:  # lost between the last token and its finish reason
                yield TokenEvent((), "length")
                return
        assert failure is not None
        raise failure

    def _rest(self, request: GenerationRequest, generated: Sequence[int]) -> GenerationRequest:
        """Return what is left of a request whose first tokens are out."""
        if not generated:
            return request
        token_ids = [*request.token_ids, *generated]
        sampling = replace(
            request.sampling,
            max_tokens=request.sampling.max_tokens - len(generated),
            min_tokens=max(0, request.sampling.min_tokens - len(generated)),
        )
        rest = replace(request, token_ids=token_ids, sampling=sampling, num_generated=len(generated))
        return with_keys(self.cluster.model, rest, request.fidelity)

    def _plan(self, request: GenerationRequest, excluded: frozenset[WorkerId]) -> tuple[GenerationRequest, Plan]:
        """Return the plan, and the request with the keys of the chain that the plan is for."""
        plan = self._plan_for(request, excluded)
        if request.fidelity is not Fidelity.LOSSLESS:
            exact = replace(request, keys=request.lossless_keys, fidelity=Fidelity.LOSSLESS)
            exact_plan = self._plan_for(exact, excluded)
            if prefers_exact(exact_plan, plan):
                request, plan = exact, exact_plan
        self.cluster.metrics.planned(plan.kind)
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
        )
        return request, plan

    def _plan_for(self, request: GenerationRequest, excluded: frozenset[WorkerId]) -> Plan:
        facts = RequestFacts(
            num_tokens=len(request.token_ids),
            keys=request.keys,
            held=self.cluster.index.held(request.keys, time.monotonic()),
            promised=self.cluster.promises.longest(request.keys),
            excluded=excluded,
            fidelity=request.fidelity,
        )
        return self._router.plan(facts, self.cluster.registry.view())

    def _note_failure(self, plan: Plan, error: PrfaasError, num_tokens: int) -> None:
        if isinstance(error, Unavailable):
            self.cluster.registry.lost(plan.decode.worker)
        self.cluster.metrics.decode_failed(error.code)
        worker = plan.decode.worker
        log.warning("decode_failed", worker=worker, num_tokens=num_tokens, code=error.code, error=str(error))
