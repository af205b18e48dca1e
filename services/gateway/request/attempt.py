"""One plan carried out: both workers called at once, both calls over when the iterator is."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import grpc.aio

from services.gateway.cluster.view import Cluster
from services.gateway.request.generation import GenerationRequest
from services.gateway.request.prefilling import Prefilling
from services.gateway.request.text import FinishReason
from services.gateway.request.usage import Tally
from services.gateway.routing.plan import Plan
from services.gateway.settings import HandOff
from shared.deadline import Deadline
from shared.errors import PrfaasError, WorkerLost
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import DecodeStub
from shared.rpc.client import rpc_errors
from shared.rpc.convert import sources_to_messages
from shared.rpc.sampling import logprobs_from_message, sampling_to_message
from shared.sampling.logprobs import TokenLogprobs
from shared.tenant import tenant_of

LAST_WORD_S = 1.0
"""How long the end of a request waits for its workers' last words: prefill's count, decode's clean close."""

_FINISH: dict[int, FinishReason] = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}

DecodeCall = grpc.aio.StreamStreamCall[pb.Control, pb.Tokens]


@dataclass(frozen=True, slots=True)
class HandOffTerms:
    """How blocks pass from prefill to decode, as configured; the same for every request."""

    mode: HandOff = "streamed"
    block_wait_ms: int = 120_000  # wait of decode for a block that nobody writes


class TokenEvent(NamedTuple):
    """Tokens that one message brought."""

    ids: tuple[int, ...]
    finish_reason: FinishReason | None  # on the last event
    logprobs: tuple[TokenLogprobs, ...] = ()  # parallel to ids, if they were asked for


class Attempt:
    """Runs one plan. Whatever happens, both calls are cancelled and over before `tokens` is."""

    def __init__(
        self,
        cluster: Cluster,
        plan: Plan,
        request: GenerationRequest,
        tally: Tally,
        deadline: Deadline,
        hand_off: HandOffTerms,
    ) -> None:
        self._cluster = cluster
        self._plan = plan
        self._request = request
        self._tally = tally
        self._deadline = deadline
        self._hand_off = hand_off
        self._prefilling = Prefilling(cluster, plan, request, tally, deadline)
        self._started = asyncio.Event()  # decode has its first message: updates may follow

    async def tokens(self) -> AsyncGenerator[TokenEvent, None]:
        """Yield tokens as decode sends them. Raises what the decode call fails with; prefill's failures stay inside."""
        worker = self._plan.decode.worker
        stub = DecodeStub(self._cluster.channels.get(self._plan.decode.address))
        call: DecodeCall = stub.Generate(timeout=self._deadline.remaining())
        self._cluster.registry.assign(worker)
        self._prefilling.start(partial(self._tell_prefill_failed, call))
        try:
            if self._hand_off.mode == "stored":
                await self._prefilling.over.wait()
            # A call that has failed already says why when it is read.
            with suppress(WorkerLost), rpc_errors(worker):
                await call.write(pb.Control(start=self._generate_request()))
            self._started.set()
            messages = aiter(call)  # `call.read()` gives up what has arrived once a write has met the stream's end
            finish_reason: FinishReason | None = None
            is_first = True
            while finish_reason is None:
                with rpc_errors(worker):
                    message = await anext(messages, None)
                if message is None:
                    raise WorkerLost(f"{worker} ended a stream without a finish reason")
                if is_first:
                    self._note_first(message)
                    is_first = False
                finish_reason = _FINISH.get(message.finish_reason)
                if finish_reason is not None:
                    await self._prefilling.wait(LAST_WORD_S)
                yield TokenEvent(tuple(message.ids), finish_reason, logprobs_from_message(message))
            await _close(call, messages, worker)
        finally:
            self._cluster.registry.release(worker)
            call.cancel()
            await self._prefilling.stop()
            await call.code()

    async def _tell_prefill_failed(self, decode: DecodeCall) -> None:
        """Have decode compute what it would wait for in vain."""
        await self._started.wait()
        # Decode may be gone too; whoever reads its stream learns that.
        with suppress(PrfaasError), rpc_errors(self._plan.decode.worker):
            await decode.write(pb.Control(update=pb.PlanUpdate(prefill_failed=True)))

    def _note_first(self, message: pb.Tokens) -> None:
        # Decode computes the end of what it is sent: attempts and choices of one prompt share what they compute of it.
        of_prompt = message.computed_prompt_tokens - self._request.num_generated
        self._tally.decode_tokens = max(self._tally.decode_tokens, of_prompt)
        tail = len(self._request.token_ids) - self._plan.num_blocks * self._cluster.model.layout.block_tokens
        if message.computed_prompt_tokens <= max(1, tail):  # every planned block has come through decode's pool
            keys = self._request.keys[: self._plan.num_blocks]
            self._cluster.assume(keys, self._plan.decode_nodes or (self._plan.decode.pool_address,))

    def _generate_request(self) -> pb.GenerateRequest:
        return pb.GenerateRequest(
            token_ids=self._request.token_ids,
            sampling=sampling_to_message(self._request.sampling),
            fingerprint=self._cluster.model.fingerprint,
            layout_hash=self._cluster.model.layout.hash,
            salt=self._request.salt,
            num_blocks=self._plan.num_blocks,
            sources=sources_to_messages(self._plan.decode_sources),
            wait_ms=0 if self._plan.prefill is None else self._hand_off.block_wait_ms,
            codec=cast(pb.Codec.ValueType, int(self._plan.decode_codec)),
            num_generated=self._request.num_generated,
            priority=self._request.priority,
            fidelity=cast(pb.Fidelity.ValueType, int(self._request.fidelity)),
            pool_nodes=self._plan.decode_nodes,
            tenant=tenant_of(self._request.salt),
        )


async def _close(call: DecodeCall, messages: AsyncIterator[pb.Tokens], worker: str) -> None:
    """End a finished stream from both sides, so that the worker does not take the end for a cancellation."""
    with suppress(PrfaasError, TimeoutError):
        async with asyncio.timeout(LAST_WORD_S):
            with rpc_errors(worker):
                await call.done_writing()
                await anext(messages, None)
