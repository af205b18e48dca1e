"""Client of decode workers: one Generate stream, from its first message to its clean end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import lru_cache
from typing import Literal, NamedTuple, Self, TypeAlias, cast
from weakref import WeakKeyDictionary

import grpc.aio
from google.protobuf.message import DecodeError

from shared.errors import Internal, PrfaasError, WorkerLost
from shared.ids import WorkerId
from shared.proto import prfaas_pb2 as pb
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.convert import sources_to_messages
from shared.rpc.sampling import (
    logprobs_from_message,
    prompt_logprobs_from_message,
    sampling_to_message,
    scoring_to_message,
)
from shared.rpc.timings import decode_timings_from_message
from shared.sampling.logprobs import TokenLogprobs
from shared.timings import DecodeTimings
from shared.workers.request import GenerateOrder

FinishReason = Literal["stop", "length"]

_Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.Control, bytes] | grpc.aio.UnaryStreamCall[pb.Control, bytes]"

_GENERATE = f"/{pb.DESCRIPTOR.services_by_name['Decode'].full_name}/Generate"

_FINISH: dict[int, FinishReason] = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


class DecodedTokens(NamedTuple):
    """What one message of a decode worker brought."""

    ids: tuple[int, ...]
    finish_reason: FinishReason | None  # on the last message
    computed_prompt_tokens: int  # prompt tokens whose KV the worker computed itself; said with the first token
    logprobs: tuple[TokenLogprobs, ...] = ()  # parallel to ids, if they were asked for
    rescued: bool = False  # blocks were late, and the worker computes the rest; there may be no ids
    timings: DecodeTimings | None = None  # with the first token
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of the prompt's next tokens, if they were asked for

    @classmethod
    def parsed(cls, data: bytes) -> Self:
        """Return what a message says. Raises `Internal` when it is none, or contradicts itself."""
        try:
            message = pb.Tokens.FromString(data)
        except DecodeError as error:
            raise Internal(f"a decode worker sent what is no message: {error}") from error
        reason, logprobs = _FINISH.get(message.finish_reason), logprobs_from_message(message)
        return cls(
            ids=tuple(message.ids),
            finish_reason=reason,
            computed_prompt_tokens=message.computed_prompt_tokens,
            logprobs=logprobs,
            rescued=message.rescued,
            timings=decode_timings_from_message(message),
            prompt_logprobs=prompt_logprobs_from_message(message),
        )


_SHORT_BYTES, _NUM_REMEMBERED = 8, 1 << 14
_remembered = lru_cache(_NUM_REMEMBERED)(DecodedTokens.parsed)
"""Most messages are one id of a few bytes, and most ids of a text are frequent ones: to look one up takes a fiftieth of
the time that it takes to parse it. A few MiB in all."""


class DecodeClient:
    """Makes calls to decode workers; owns nothing, channels belong to `Channels`."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._methods: WeakKeyDictionary[grpc.aio.Channel, _Methods] = WeakKeyDictionary()

    def call(self, worker: WorkerId, address: str, *, may_change: bool) -> "DecodeCall":
        """Return a call that is still to be started; whoever starts it calls `cancel` and `ended`.

        `may_change`: `prefill_failed` may follow the request. Where nothing can, one operation of gRPC sends it all.
        """
        channel = self._channels.get(address)
        methods = self._methods.get(channel)
        if methods is None:
            methods = self._methods[channel] = _Methods(channel)
        return DecodeCall(worker, methods, may_change)


class _Methods:
    """Generate on one channel. Its two forms are one to the server: controls as a stream, and a single one.

    Answers are left as they came: gRPC swallows what a deserialiser raises.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        serialize = pb.Control.SerializeToString
        self.changing: grpc.aio.StreamStreamMultiCallable[pb.Control, bytes] = channel.stream_stream(
            _GENERATE, request_serializer=serialize
        )
        self.fixed: grpc.aio.UnaryStreamMultiCallable[pb.Control, bytes] = channel.unary_stream(
            _GENERATE, request_serializer=serialize
        )


class DecodeCall:
    """One request on one decode worker. Its failures are `PrfaasError`s: `WorkerLost`, `Overloaded`, ..."""

    def __init__(self, worker: WorkerId, methods: _Methods, may_change: bool) -> None:
        self._worker = worker
        self._methods = methods
        self._may_change = may_change
        self._call: _Call | None = None
        self._changes: grpc.aio.StreamStreamCall[pb.Control, bytes] | None = None  # the same call
        self._messages: AsyncIterator[bytes] | None = None
        self._errors = rpc_errors(worker)

    async def start(self, order: GenerateOrder, timeout_s: float) -> None:
        """Send the request; the call ends by itself after `timeout_s`.

        Does not fail: a call that is over already says why when it is read.
        """
        message = _control(order)
        with suppress(PrfaasError), self._errors:
            if not self._may_change:
                self._call = self._methods.fixed(message, timeout=timeout_s)
            else:
                self._call = self._changes = self._methods.changing(timeout=timeout_s)
                await self._changes.write(message)

    async def prefill_failed(self) -> None:
        """Tell the worker to compute what it would wait for in vain. Does not fail, as `start`."""
        with suppress(PrfaasError), self._errors:
            if self._changes is not None:
                await self._changes.write(pb.Control(update=pb.PlanUpdate(prefill_failed=True)))

    async def next_tokens(self) -> DecodedTokens:
        """Wait for the next message. Raises what the call fails with, `WorkerLost` when it ends without a reason."""
        if self._messages is None:
            if self._call is None:
                raise WorkerLost(f"{self._worker}: the call is over")
            self._messages = aiter(self._call)  # `read()` gives up what has arrived once a write has met the end
        try:
            with self._errors:
                data = await anext(self._messages)
        except StopAsyncIteration:
            raise WorkerLost(f"{self._worker} ended a stream without a finish reason") from None
        return _remembered(data) if len(data) <= _SHORT_BYTES else DecodedTokens.parsed(data)

    async def finish(self, limit_s: float) -> None:
        """Wait for the worker to end a finished stream, lest it take our own end for a cancellation."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self.ended()

    def cancel(self) -> None:
        """End the call now; nothing happens when it is over."""
        if self._call is not None:
            self._call.cancel()

    async def ended(self) -> None:
        """Wait until the call is over, however it ended."""
        if self._call is not None:
            await self._call.code()


def _control(order: GenerateOrder) -> pb.Control:
    prompt = order.prompt
    request = pb.GenerateRequest(
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
        patience_ms=0 if order.patience_s is None else max(1, round(1000 * order.patience_s)),
        scoring=scoring_to_message(order.scoring),
    )
    control = pb.Control(start=request)
    control.start.token_ids.extend(prompt.token_ids)  # now: a message that is put into another is copied
    return control
