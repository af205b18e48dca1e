"""Client of decode workers: one Generate stream, from its first message to its clean end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Literal, NamedTuple, cast

import grpc.aio

from shared.errors import PrfaasError, WorkerLost
from shared.ids import WorkerId
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import DecodeStub
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.convert import sources_to_messages
from shared.rpc.sampling import logprobs_from_message, sampling_to_message
from shared.sampling.logprobs import TokenLogprobs
from shared.workers.request import GenerateOrder

FinishReason = Literal["stop", "length"]

_FINISH: dict[int, FinishReason] = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


class DecodedTokens(NamedTuple):
    """What one message of a decode worker brought."""

    ids: tuple[int, ...]
    finish_reason: FinishReason | None  # on the last message
    computed_prompt_tokens: int  # prompt tokens whose KV the worker computed itself; said with the first token
    logprobs: tuple[TokenLogprobs, ...] = ()  # parallel to ids, if they were asked for


class DecodeClient:
    """Opens calls to decode workers; owns nothing, channels belong to `Channels`."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    def open(self, worker: WorkerId, address: str, timeout_s: float) -> "DecodeCall":
        """Open a call that ends by itself after `timeout_s`. Whoever opens it calls `cancel` and `ended`."""
        call = DecodeStub(self._channels.get(address)).Generate(timeout=timeout_s)
        return DecodeCall(call, worker)


class DecodeCall:
    """One request on one decode worker. Its failures are `PrfaasError`s: `WorkerLost`, `Overloaded`, ..."""

    def __init__(self, call: "grpc.aio.StreamStreamCall[pb.Control, pb.Tokens]", worker: WorkerId) -> None:
        self._call = call
        self._worker = worker
        self._messages: AsyncIterator[pb.Tokens] | None = None

    async def start(self, order: GenerateOrder) -> None:
        """Send the request. Does not fail: a call that is over already says why when it is read."""
        with suppress(PrfaasError), rpc_errors(self._worker):
            await self._call.write(pb.Control(start=_message(order)))

    async def prefill_failed(self) -> None:
        """Tell the worker to compute what it would wait for in vain. Does not fail, as `start`."""
        with suppress(PrfaasError), rpc_errors(self._worker):
            await self._call.write(pb.Control(update=pb.PlanUpdate(prefill_failed=True)))

    async def next_tokens(self) -> DecodedTokens:
        """Wait for the next message. Raises what the call fails with, `WorkerLost` when it ends without a reason."""
        if self._messages is None:
            self._messages = aiter(self._call)  # `read()` gives up what has arrived once a write has met the end
        with rpc_errors(self._worker):
            message = await anext(self._messages, None)
        if message is None:
            raise WorkerLost(f"{self._worker} ended a stream without a finish reason")
        reason = _FINISH.get(message.finish_reason)
        logprobs = logprobs_from_message(message)
        return DecodedTokens(tuple(message.ids), reason, message.computed_prompt_tokens, logprobs)

    async def finish(self, limit_s: float) -> None:
        """End a finished stream from both sides, so that the worker does not take the end for a cancellation."""
        with suppress(PrfaasError, TimeoutError):
            async with asyncio.timeout(limit_s):
                with rpc_errors(self._worker):
                    await self._call.done_writing()
                    if self._messages is not None:
                        await anext(self._messages, None)

    def cancel(self) -> None:
        """End the call now; nothing happens when it is over."""
        self._call.cancel()

    async def ended(self) -> None:
        """Wait until the call is over, however it ended."""
        await self._call.code()


def _message(order: GenerateOrder) -> pb.GenerateRequest:
    prompt = order.prompt
    return pb.GenerateRequest(
        token_ids=prompt.token_ids,
        sampling=sampling_to_message(order.sampling),
        fingerprint=prompt.fingerprint,
        layout_hash=prompt.layout_hash,
        salt=prompt.salt,
        num_blocks=prompt.num_blocks,
        sources=sources_to_messages(prompt.sources),
        wait_ms=order.wait_ms,
        codec=cast(pb.Codec.ValueType, int(prompt.codec)),
        num_generated=order.num_generated,
        priority=prompt.priority,
        fidelity=cast(pb.Fidelity.ValueType, int(prompt.fidelity)),
        pool_nodes=prompt.pool_nodes,
        tenant=prompt.tenant,
    )
