"""One plan carried out: both workers called at once, both calls over when the iterator is."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from services.gateway.cluster.assigned import PromptWork
from services.gateway.cluster.registry import Registry
from services.gateway.control.observed import Observations
from services.gateway.model import ServedModel
from services.gateway.request.generation import GenerationRequest
from services.gateway.request.noted import noted
from services.gateway.request.prefilling import NoteArrival, PrefillCalls, Prefilling
from services.gateway.request.usage import PromptUsage
from services.gateway.routing.plan import Plan
from services.gateway.routing.rescue import patience_s
from services.gateway.settings import HandOff
from services.gateway.timeline.record import AttemptNote
from shared.deadline import Deadline
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.entries import Source
from shared.log import get_logger
from shared.sampling.logprobs import TokenLogprobs
from shared.workers.decode import DecodeCall, DecodeClient, DecodedTokens, FinishReason
from shared.workers.request import GenerateOrder, PromptOrder

log = get_logger()

LAST_WORD_S = 1.0
"""How long the end of a request waits for its workers' last words: prefill's count, decode's clean close."""


NoteFirstToken = Callable[[Plan, Sequence[BlockKey], float | None, float], None]
"""Told a plan, its prompt's keys, the seconds until the first token, and when that was: see `feedback.Feedback`.

None in place of seconds: they say nothing of such plans, for this one was not carried out to its end."""


@dataclass(frozen=True, slots=True)
class HandOffTerms:
    """How blocks pass from prefill to decode, as configured; the same for every request."""

    mode: HandOff = "streamed"
    block_wait_ms: int = 120_000  # wait of decode for a block that nobody writes


@dataclass(frozen=True, slots=True)
class DecodeCalls:
    """What all requests share for calling decode workers, and prefill workers beside them."""

    client: DecodeClient
    registry: Registry
    note_arrival: NoteArrival
    note_first_token: NoteFirstToken
    prefill: PrefillCalls
    model: ServedModel
    hand_off: HandOffTerms
    observations: Observations


class TokenEvent(NamedTuple):
    """Tokens that one message brought."""

    ids: tuple[int, ...]
    finish_reason: FinishReason | None  # on the last event
    logprobs: tuple[TokenLogprobs, ...] = ()  # parallel to ids, if they were asked for
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of the prompt's next tokens, if they were asked for

    @property
    def is_answer(self) -> bool:
        """Whether the answer goes on, or ends, with it."""
        return bool(self.ids) or self.finish_reason is not None


class Attempt:
    """Runs one plan. Whatever happens, both calls are cancelled and over before `tokens` is."""

    def __init__(
        self,
        calls: DecodeCalls,
        plan: Plan,
        request: GenerationRequest,
        usage: PromptUsage,
        deadline: Deadline,
        note_prefilled: Callable[[], None] = lambda: None,
        note: AttemptNote | None = None,
    ) -> None:
        """`note_prefilled` is called when the prefill worker, if the plan has one, is done with the prompt. `note`
        keeps the times of what happens; by default nobody reads them.
        """
        self._calls = calls
        self._note_prefilled = note_prefilled
        self._plan = plan
        self._request = request
        self._usage = usage
        self._deadline = deadline
        self._keys = request.keys[: plan.num_blocks]
        self._note = note = note or AttemptNote(noted(plan))
        self._prefilling = Prefilling(
            calls.prefill, plan, self._prefill_order(), self._keys, usage, deadline, note.prefill_sent
        )
        self._begun_at = time.monotonic()
        self._started = asyncio.Event()  # decode has its first message: updates may follow
        self._patience_s = patience_s(plan)
        self._is_rescued = False  # what has not come by now is computed by decode

    async def tokens(self) -> AsyncGenerator[TokenEvent, None]:
        """Yield tokens as decode sends them. Raises what the decode call fails with; prefill's failures stay inside."""
        decode = self._plan.decode
        # A prefill that fails is all that decode may have to hear of later.
        call = self._calls.client.call(decode.worker, decode.address, may_change=self._plan.prefill is not None)
        forecast = self._plan.forecast
        work = PromptWork(forecast.decode_s, forecast.decode_tokens, len(self._request.token_ids))
        assignment = self._calls.registry.assign(decode.worker, work, call.cancel)
        num_output_tokens = 0
        self._note_sent()
        self._prefilling.start(partial(self._tell_prefill_failed, call), self._note_prefilled)
        try:
            if self._calls.hand_off.mode == "stored" and not await self._prefilling.is_over(self._patience_s):
                self._rescue()
            self._note.decode_sent()
            await call.start(self._generate_order(), self._deadline.remaining())
            self._started.set()
            finish_reason: FinishReason | None = None
            is_first = True
            while finish_reason is None:
                tokens = await call.next_tokens()
                if tokens.rescued:
                    self._rescue()
                    if not (tokens.ids or tokens.prompt_logprobs or tokens.finish_reason):
                        continue
                finish_reason = tokens.finish_reason
                if is_first and (tokens.ids or finish_reason is not None):
                    self._note_first(tokens)
                    is_first = False
                num_output_tokens += len(tokens.ids)
                if finish_reason is not None:
                    await self._prefilling.wait(LAST_WORD_S)
                yield TokenEvent(tokens.ids, finish_reason, tokens.logprobs, tokens.prompt_logprobs)
            await call.finish(LAST_WORD_S)
        finally:
            self._note.ended()
            self._calls.observations.ended(num_output_tokens)
            self._calls.registry.release(assignment)
            call.cancel()
            await self._prefilling.stop()
            await call.ended()

    def _note_sent(self) -> None:
        num_tokens, plan = len(self._request.token_ids), self._plan
        num_uncached = num_tokens - plan.usable_blocks * self._calls.model.layout.block_tokens
        self._calls.observations.sent(plan, num_tokens, num_uncached, is_first=not self._request.num_generated)

    async def _tell_prefill_failed(self, call: DecodeCall) -> None:
        """Have decode compute what it would wait for in vain. It may be gone too: its reader learns that."""
        await self._started.wait()
        await call.prefill_failed()

    def _rescue(self) -> None:
        """Take note that decode computes what is late: prefill would go on for nobody."""
        self._is_rescued = True
        self._note.rescued()
        self._calls.prefill.metrics.rescued(self._plan.kind)
        self._prefilling.give_up()
        log.warning(
            "rescued",
            kind=self._plan.kind,
            decode=self._plan.decode.worker,
            prefill=self._plan.prefill.worker if self._plan.prefill else None,
            patience_s=self._patience_s,
            forecast_ttft_s=self._plan.forecast.ttft_s,
        )

    def _note_first(self, tokens: DecodedTokens) -> None:
        now = time.monotonic()
        self._note.first_token(now, tokens.computed_prompt_tokens, tokens.timings)
        # Logits of a whole prompt take time that other plans like it do not.
        is_usual = not self._is_rescued and self._request.scoring is None
        ttft_s = now - self._begun_at if is_usual else None
        self._calls.note_first_token(self._plan, self._request.keys, ttft_s, now)
        # Decode computes the end of what it is sent: attempts and choices of one prompt share what they compute of it.
        of_prompt = tokens.computed_prompt_tokens - self._request.num_generated
        self._usage.decode_tokens = max(self._usage.decode_tokens, of_prompt)
        tail = len(self._request.token_ids) - self._plan.num_blocks * self._calls.model.layout.block_tokens
        if tokens.computed_prompt_tokens <= max(1, tail):  # every planned block has come through decode's pool
            self._calls.note_arrival(self._keys, self._plan.decode_nodes or (self._plan.decode.pool_address,))

    def _prefill_order(self) -> PromptOrder:
        plan = self._plan
        return self._prompt_order(plan.prefill_sources, plan.prefill_codec, plan.prefill_nodes)

    def _generate_order(self) -> GenerateOrder:
        plan = self._plan
        sources = () if self._is_rescued else plan.decode_sources
        is_awaited = plan.prefill is not None and not self._is_rescued
        return GenerateOrder(
            prompt=self._prompt_order(sources, plan.decode_codec, plan.decode_nodes),
            sampling=self._request.sampling,
            wait_ms=self._calls.hand_off.block_wait_ms if is_awaited else 0,
            num_generated=self._request.num_generated,
            patience_s=None if self._is_rescued else self._patience_s,
            scoring=self._request.scoring,
        )

    def _prompt_order(self, sources: Sequence[Source], codec: Codec, pool_nodes: Sequence[str]) -> PromptOrder:
        """Return what both workers are told, each with the pools of its own datacenter."""
        request, model = self._request, self._calls.model
        return PromptOrder(
            token_ids=request.token_ids,
            num_blocks=self._plan.num_blocks,
            fingerprint=model.fingerprint,
            layout_hash=model.layout.hash,
            salt=request.salt,
            tenant=request.tenant,
            sources=sources,
            codec=codec,
            fidelity=request.fidelity,
            pool_nodes=pool_nodes,
            priority=request.priority,
        )
