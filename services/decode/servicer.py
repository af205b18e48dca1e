"""gRPC face of a decode worker: validates, then relays between a call and its request."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import grpc

from services.decode.engine import DecodeEngine
from services.decode.request import FinishReason, Generation, NewTokens, Request
from shared.deadline import Deadline
from shared.engine.loaded import LoadedModel
from shared.engine.thread import beside_loop
from shared.errors import BadRequest
from shared.log import current_request_id
from shared.model.grammar.grammars import Grammars
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import DecodeServicer as Base
from shared.rpc.convert import codec_from_message, fidelity_from_message, sources_from_messages
from shared.rpc.sampling import logprobs_to_messages, sampling_from_message, scoring_from_message
from shared.rpc.server import call_deadline
from shared.rpc.timings import decode_timings_to_message
from shared.sampling.constraint import Constraint
from shared.telemetry.spans import current_span
from shared.tenant import Tenant

DEFAULT_TIMEOUT_S = 600.0
MAX_TOLD_AT_ONCE = 1024
"""Tokens of a prompt of which one message tells: with all alternatives, some 200 KiB."""

_FINISH_REASONS = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


class DecodeServicer(Base):
    """`prfaas.v1.Decode`. The call is the request's life: however it ends, the request is aborted."""

    def __init__(self, model: LoadedModel, engine: DecodeEngine, grammars: Grammars) -> None:
        self._model = model
        self._engine = engine
        self._grammars = grammars

    async def Generate(
        self, request_iterator: AsyncIterator[pb.Control], context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[pb.Tokens]:
        first = await anext(request_iterator, None)
        began_at = time.monotonic()
        if first is None or not first.HasField("start"):
            raise BadRequest("the first message of Generate must be `start`")
        start, deadline = first.start, call_deadline(context, DEFAULT_TIMEOUT_S)
        generation = await beside_loop(len(start.token_ids), partial(self._validated, start, deadline, began_at))
        if generation.sampling.constraint is not None:
            generation = await self._guided(generation, generation.sampling.constraint)
        request = self._engine.submit(generation)
        updates = asyncio.create_task(self._follow(request_iterator, request), name="plan updates")
        try:
            async with aclosing(request.events()) as events:
                async for event in events:
                    for message in messages_of(event):
                        yield message
        finally:
            self._engine.abort(request)
            updates.cancel()
            await asyncio.wait({updates})

    async def _guided(self, generation: Generation, constraint: Constraint) -> Generation:
        """Give a request the guide that a worker would have which had generated the answer's beginning itself."""
        generated = generation.token_ids[len(generation.token_ids) - generation.num_generated_before :]
        async with generation.deadline.scope("the constraint was being compiled"):
            guide = await self._grammars.guide(constraint, generation.sampling.stop_token_ids, generated)
        return replace(generation, guide=guide)

    async def _follow(self, controls: AsyncIterator[pb.Control], request: Request) -> None:
        async for control in controls:
            if control.update.prefill_failed:
                self._engine.prefill_failed(request)

    def _validated(self, start: pb.GenerateRequest, deadline: Deadline, began_at: float) -> Generation:
        token_ids, model = list(start.token_ids), self._model
        model.check(start.fingerprint, start.layout_hash, token_ids)
        most = len(token_ids) // model.layout.block_tokens
        if start.num_blocks > most:
            raise BadRequest(f"num_blocks is {start.num_blocks}; this prompt has {most} blocks")
        if start.num_generated >= len(token_ids):
            raise BadRequest(f"num_generated is {start.num_generated}; {len(token_ids)} tokens leave no prompt")
        sampling = sampling_from_message(start.sampling)
        fidelity = fidelity_from_message(start.fidelity)
        sampling.check_ids(model.config.vocab_size)
        return Generation(
            request_id=current_request_id(),
            span=current_span(),
            token_ids=token_ids,
            sampling=sampling,
            root=model.root(start.salt, fidelity),
            keys=model.keys(token_ids, start.salt, fidelity),
            num_blocks=start.num_blocks,
            sources=sources_from_messages(start.sources),
            wait_s=start.wait_ms / 1000,
            codec=codec_from_message(start.codec, fidelity),
            deadline=deadline,
            num_generated_before=start.num_generated,
            priority=start.priority,
            pool_nodes=tuple(start.pool_nodes),
            tenant=Tenant(start.tenant),
            fidelity=fidelity,
            patience_s=start.patience_ms / 1000 if start.patience_ms else None,
            scoring=scoring_from_message(start),
            began_at=began_at,
        )


def messages_of(event: NewTokens) -> Iterator[pb.Tokens]:
    """Yield an event as one message, more only where it tells of much of the prompt."""
    told = event.prompt_logprobs
    first = 0
    while len(told) - first > MAX_TOLD_AT_ONCE:
        yield pb.Tokens(prompt_logprobs=logprobs_to_messages(told[first : first + MAX_TOLD_AT_ONCE]))
        first += MAX_TOLD_AT_ONCE
    yield _message(event._replace(prompt_logprobs=told[first:]))


def _message(event: NewTokens) -> pb.Tokens:
    return pb.Tokens(
        ids=event.ids,
        finish_reason=_FINISH_REASONS[event.finish_reason],
        computed_prompt_tokens=event.computed_prompt_tokens,
        logprobs=logprobs_to_messages(event.logprobs),
        rescued=event.rescued,
        timings=decode_timings_to_message(event.timings),
        prompt_logprobs=logprobs_to_messages(event.prompt_logprobs),
    )
