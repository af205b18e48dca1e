"""One plan carried out: both workers called at once, both calls over when the iterator is."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import grpc.aio

from services.gateway.index import PlacementIndex
from services.gateway.metrics import GatewayMetrics
from services.gateway.model import ServedModel
from services.gateway.prepare import GenerationRequest
from services.gateway.promises import Promise, Promises
from services.gateway.registry import Member, Registry
from services.gateway.resume import needed_groups
from services.gateway.router import Plan
from services.gateway.text import FinishReason
from shared.deadline import Deadline
from shared.errors import PrfaasError, Unavailable, WorkerLost
from shared.kv.hashing import tenant_of
from shared.kv.rendezvous import partition
from shared.log import get_logger
from shared.model.logprobs import TokenLogprobs
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import DecodeStub, PrefillStub
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.convert import sources_to_messages
from shared.rpc.sampling import logprobs_from_message, sampling_to_message

log = get_logger()

ASSUMED_S = 5.0
"""How long blocks that were seen to arrive are credited to a pool whose own event is still on its way."""

LAST_WORD_S = 1.0
"""How long the end of a request waits for its workers' last words: prefill's count, decode's clean close."""

_FINISH: dict[int, FinishReason] = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}

DecodeCall = grpc.aio.StreamStreamCall[pb.Control, pb.Tokens]


class TokenEvent(NamedTuple):
    """Tokens that one message brought."""

    ids: tuple[int, ...]
    finish_reason: FinishReason | None  # on the last event
    logprobs: tuple[TokenLogprobs, ...] = ()  # parallel to ids, if they were asked for


@dataclass(slots=True)
class Tally:
    """What a prompt has cost so far, over all its choices; complete once they have ended."""

    num_prompt_tokens: int
    prefill_tokens: int = 0  # prompt tokens that prefill workers computed
    decode_tokens: int = 0  # prompt tokens that decode workers computed, however often

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens whose KV was not computed for this request."""
        return max(0, self.num_prompt_tokens - self.prefill_tokens - self.decode_tokens)


@dataclass(frozen=True)
class Cluster:
    """The gateway's view of the world: fed by the bus, corrected by what calls show."""

    model: ServedModel
    index: PlacementIndex
    promises: Promises
    registry: Registry
    channels: Channels
    metrics: GatewayMetrics


class Attempt:
    """Runs one plan. Whatever happens, both calls are cancelled and over before `tokens` is."""

    def __init__(
        self, cluster: Cluster, plan: Plan, request: GenerationRequest, tally: Tally, deadline: Deadline
    ) -> None:
        self._cluster = cluster
        self._plan = plan
        self._request = request
        self._tally = tally
        self._deadline = deadline
        self._started = asyncio.Event()  # decode has its first message: updates may follow
        self._prefilled = asyncio.Event()  # the prefill call is over, whichever way

    async def tokens(self) -> AsyncGenerator[TokenEvent, None]:
        """Yield tokens as decode sends them. Raises what the decode call fails with; prefill's failures stay inside."""
        worker = self._plan.decode.worker
        stub = DecodeStub(self._cluster.channels.get(self._plan.decode.address))
        call: DecodeCall = stub.Generate(timeout=self._deadline.remaining())
        self._cluster.registry.assign(worker)
        prefill = self._start_prefill(call)
        try:
            if prefill is not None and self._plan.hand_off == "stored":
                await self._prefilled.wait()
            # A call that has failed already says why when it is read.
            with suppress(WorkerLost), rpc_errors(worker):
                await call.write(pb.Control(start=self._generate_request()))
            self._started.set()
            finish_reason: FinishReason | None = None
            is_first = True
            while finish_reason is None:
                with rpc_errors(worker):
                    message = await call.read()
                if not isinstance(message, pb.Tokens):
                    raise WorkerLost(f"{worker} ended a stream without a finish reason")
                if is_first:
                    self._note_first(message)
                    is_first = False
                finish_reason = _FINISH.get(message.finish_reason)
                if finish_reason is not None:
                    await _wait_for(prefill)
                yield TokenEvent(tuple(message.ids), finish_reason, logprobs_from_message(message))
            await _close(call, worker)
        finally:
            self._cluster.registry.release(worker)
            call.cancel()
            if prefill is not None:
                prefill.cancel()
                await asyncio.wait({prefill})
            await call.code()

    def _start_prefill(self, decode: DecodeCall) -> asyncio.Task[None] | None:
        """Open the prefill call, if the plan has one. Promise and load count at once: plans may follow any await."""
        member = self._plan.prefill
        if member is None:
            return None
        promise = Promise(member.worker, self._request.keys[: self._plan.num_blocks])
        self._cluster.promises.add(promise)
        self._cluster.registry.assign(member.worker)
        task = asyncio.create_task(self._prefill(member, decode), name="prefill call")
        task.add_done_callback(partial(self._end_prefill, promise))
        return task

    def _end_prefill(self, promise: Promise, task: asyncio.Task[None]) -> None:
        self._cluster.promises.drop(promise)
        self._cluster.registry.release(promise.worker)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("prefill_crashed", exc_info=error)  # decode computes what it then waits for in vain

    async def _prefill(self, member: Member, decode: DecodeCall) -> None:
        try:
            await self._call_prefill(member)
        except PrfaasError as error:
            if isinstance(error, Unavailable):
                self._cluster.registry.lost(member.worker)
            self._cluster.metrics.prefill_failed(error.code)
            log.warning("prefill_failed", worker=member.worker, code=error.code, error=str(error))
            await self._started.wait()
            # Decode may be gone too; whoever reads its stream learns that.
            with suppress(PrfaasError), rpc_errors(self._plan.decode.worker):
                await decode.write(pb.Control(update=pb.PlanUpdate(prefill_failed=True)))
        else:
            self._credit(self._plan.prefill_nodes or (member.pool_address,))

    async def _call_prefill(self, member: Member) -> None:
        """Follow one prefill call to its end. Raises what it fails with."""
        stub = PrefillStub(self._cluster.channels.get(member.address))
        call = stub.Prefill(self._prefill_request(), timeout=self._deadline.remaining())
        counted = 0
        is_finished = False
        try:
            with rpc_errors(member.worker):
                async for progress in call:
                    self._tally.prefill_tokens += progress.computed_tokens - counted
                    counted = progress.computed_tokens
                    is_finished = progress.finished
        finally:
            call.cancel()
            self._prefilled.set()
        if not is_finished:
            raise WorkerLost(f"{member.worker} ended a prefill before it was finished")

    def _note_first(self, message: pb.Tokens) -> None:
        # Decode computes the end of what it is sent: attempts and choices of one prompt share what they compute of it.
        of_prompt = message.computed_prompt_tokens - self._request.num_generated
        self._tally.decode_tokens = max(self._tally.decode_tokens, of_prompt)
        tail = len(self._request.token_ids) - self._plan.num_blocks * self._cluster.model.layout.block_tokens
        if message.computed_prompt_tokens <= max(1, tail):  # every planned block has come through decode's pool
            self._credit(self._plan.decode_nodes or (self._plan.decode.pool_address,))

    def _credit(self, nodes: Sequence[str]) -> None:
        """Tell the index what a pool must hold by now, so that the next request need not wait for its nodes' events."""
        groups = needed_groups(self._cluster.model.layout, self._plan.num_blocks)
        keys, until = self._request.keys[: self._plan.num_blocks], time.monotonic() + ASSUMED_S
        for node, blocks in partition(keys, nodes).items():
            holder = self._cluster.registry.pool_at(node)
            if holder is not None:
                self._cluster.index.assume(holder, [keys[block] for block in blocks], groups[blocks], until)

    def _generate_request(self) -> pb.GenerateRequest:
        return pb.GenerateRequest(
            token_ids=self._request.token_ids,
            sampling=sampling_to_message(self._request.sampling),
            fingerprint=self._cluster.model.fingerprint,
            layout_hash=self._cluster.model.layout.hash,
            salt=self._request.salt,
            num_blocks=self._plan.num_blocks,
            sources=sources_to_messages(self._plan.decode_sources),
            wait_ms=self._plan.wait_ms,
            codec=cast(pb.Codec.ValueType, int(self._plan.decode_codec)),
            num_generated=self._request.num_generated,
            priority=self._request.priority,
            fidelity=cast(pb.Fidelity.ValueType, int(self._request.fidelity)),
            pool_nodes=self._plan.decode_nodes,
            tenant=tenant_of(self._request.salt),
        )

    def _prefill_request(self) -> pb.PrefillRequest:
        return pb.PrefillRequest(
            token_ids=self._request.token_ids,
            num_blocks=self._plan.num_blocks,
            fingerprint=self._cluster.model.fingerprint,
            layout_hash=self._cluster.model.layout.hash,
            salt=self._request.salt,
            sources=sources_to_messages(self._plan.prefill_sources),
            codec=cast(pb.Codec.ValueType, int(self._plan.prefill_codec)),
            priority=self._request.priority,
            fidelity=cast(pb.Fidelity.ValueType, int(self._request.fidelity)),
            pool_nodes=self._plan.prefill_nodes,
            tenant=tenant_of(self._request.salt),
        )


async def _wait_for(prefill: asyncio.Task[None] | None) -> None:
    """Give prefill a moment to say what it has computed: decode can be done before that message is here."""
    if prefill is not None:
        await asyncio.wait({prefill}, timeout=LAST_WORD_S)


async def _close(call: DecodeCall, worker: str) -> None:
    """End a finished stream from both sides, so that the worker does not take the end for a cancellation."""
    with suppress(PrfaasError, TimeoutError):
        async with asyncio.timeout(LAST_WORD_S):
            with rpc_errors(worker):
                await call.done_writing()
                await call.read()
