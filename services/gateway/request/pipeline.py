"""One request's life after validation: plan, attempt, and when a decode worker is lost, the rest on another."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from services.gateway.admission.gate import TurnGate
from services.gateway.admission.turn import TurnRequest
from services.gateway.cluster.registry import NO_WAITS, Registry
from services.gateway.metrics import GatewayMetrics
from services.gateway.request.attempt import Attempt, DecodeCalls, TokenEvent
from services.gateway.request.generation import GenerationRequest, with_keys
from services.gateway.request.noted import noted
from services.gateway.request.usage import PromptUsage
from services.gateway.routing.plan import Plan
from services.gateway.timeline.record import ChoiceNote
from services.gateway.timeline.traced import traced_attempt
from shared.deadline import Deadline
from shared.errors import NoWorker, PrfaasError, Unavailable
from shared.ids import WorkerId
from shared.log import get_logger

log = get_logger()

MAX_ATTEMPTS = 3
"""Decode workers that one request may be tried on."""


class Plans(Protocol):
    """What the pipeline asks of `planning.Planner`."""

    def plan(
        self, request: GenerationRequest, excluded: frozenset[WorkerId], waits: Mapping[WorkerId, float] = NO_WAITS
    ) -> tuple[GenerationRequest, Plan]: ...

    def carried_out(self, request: GenerationRequest, plan: Plan) -> None: ...


class Pipeline:
    """Runs requests and keeps nothing of them: every call is over before its iterator is."""

    def __init__(
        self, plans: Plans, calls: DecodeCalls, registry: Registry, metrics: GatewayMetrics, gate: TurnGate
    ) -> None:
        self._plans = plans
        self._calls = calls
        self._registry = registry
        self._metrics = metrics
        self._gate = gate

    async def generate(
        self, request: GenerationRequest, usage: PromptUsage, deadline: Deadline, note: ChoiceNote | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        """Yield tokens until one event has a finish reason. Close the iterator (`aclosing`) to cancel.

        When a decode worker is lost, another continues from the prompt and the tokens so far: sampling depends on
        seed and position alone, so it goes on as the first one would have. A request waits at the gate once: one that
        goes on with another worker does not wait again. Raises `Rejected`, `NoWorker`, `WorkerLost`,
        `DeadlineExceeded`, `Overloaded` and whatever else decode answers. `note` keeps the times of what happens.
        """
        generated: list[int] = []
        num_scored = 0
        excluded: set[WorkerId] = set()
        failure: PrfaasError | None = None
        asking = _asking(request)
        note = note or ChoiceNote()
        note.begun()
        rest, plan = self._plans.plan(request, frozenset(), self._gate.waits(asking))
        note.planned()
        with await self._gate.enter(asking, plan, deadline) as turn:
            note.passed(has_waited=turn.waited)
            if turn.waited:  # the cluster is not as it was
                rest, plan = self._plans.plan(request, frozenset(), self._gate.waits(asking, turn))
            for _ in range(MAX_ATTEMPTS):
                if failure is not None:
                    rest, plan = await self._planned_again(request, generated, num_scored, excluded, failure)
                self._plans.carried_out(rest, plan)
                rest = replace(rest, priority=turn.sent(plan))
                tried = note.carried_out(noted(plan))
                attempt = Attempt(self._calls, plan, rest, usage, deadline, turn.prefilled, tried)
                try:
                    with traced_attempt(tried):
                        async with aclosing(attempt.tokens()) as events:
                            async for event in events:
                                if event.is_answer:
                                    turn.first_token()
                                generated += event.ids
                                num_scored += len(event.prompt_logprobs)
                                yield event
                    return
                except PrfaasError as error:
                    tried.error = error.code
                    if not error.retriable:
                        raise
                    failure = error
                    excluded.add(plan.decode.worker)
                    self._note_failure(plan, error, len(generated))
                is_whole = len(generated) >= request.sampling.max_tokens and not request.num_unscored(num_scored)
                if is_whole:  # lost between the last token and its finish reason
                    yield TokenEvent((), "length")
                    return
        assert failure is not None
        raise failure

    async def _planned_again(
        self,
        request: GenerationRequest,
        generated: Sequence[int],
        num_scored: int,
        excluded: set[WorkerId],
        failure: PrfaasError,
    ) -> tuple[GenerationRequest, Plan]:
        """Plan what is left of a request without the workers that have failed it. Raises `failure` if none is left."""
        rest = await self._rest(request, generated, num_scored)
        try:
            return self._plans.plan(rest, frozenset(excluded))
        except NoWorker:
            raise failure from None

    async def _rest(self, request: GenerationRequest, generated: Sequence[int], num_scored: int) -> GenerationRequest:
        """Return what is left of a request whose first tokens are out, or something of its prompt."""
        if request.scoring is not None:
            is_told = not request.num_unscored(num_scored)
            request = replace(request, scoring=None if is_told else request.scoring.after(num_scored))
        if not generated:
            return request
        token_ids = [*request.token_ids, *generated]
        sampling = replace(
            request.sampling,
            max_tokens=request.sampling.max_tokens - len(generated),
            min_tokens=max(0, request.sampling.min_tokens - len(generated)),
        )
        rest = replace(request, token_ids=token_ids, sampling=sampling, num_generated=len(generated))
        # Hashing a long prompt takes milliseconds.
        return await asyncio.to_thread(with_keys, self._calls.model, rest, request.fidelity)

    def _note_failure(self, plan: Plan, error: PrfaasError, num_tokens: int) -> None:
        worker = plan.decode.worker
        if isinstance(error, Unavailable):
            self._registry.lost(worker)
        self._metrics.decode_failed(error.code)
        log.warning("decode_failed", worker=worker, num_tokens=num_tokens, code=error.code, error=str(error))


def _asking(request: GenerationRequest) -> TurnRequest:
    return TurnRequest(request.tenant, request.priority, request.slo, request.sampling.max_tokens)
