"""The clients of the engines against scripted workers on loopback: what is sent, what comes back, how calls end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from google.protobuf.message import Message

from shared.errors import DeadlineExceeded, Internal, Overloaded, WorkerLost
from shared.ids import Datacenter, LayoutHash, ModelFingerprint, WorkerId
from shared.kv.codec import Codec, Fidelity
from shared.kv.entries import Source
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import add_DecodeServicer_to_server, add_PrefillServicer_to_server
from shared.rpc.client import Channels
from shared.rpc.server import GrpcServer
from shared.sampling.logprobs import PromptScoring, TokenLogprobs
from shared.sampling.params import SamplingParams
from shared.service.health import Health
from shared.service.lifecycle import InFlight
from shared.tenant import Tenant
from shared.workers.decode import DecodeCall, DecodeClient, DecodedTokens
from shared.workers.prefill import PrefillClient
from shared.workers.request import GenerateOrder, PromptOrder
from tests.support.gateway import Behaviour, Call, ScriptedWorker, hangs, prefills, raises
from tests.support.waiting import LIMIT_S

PROMPT = PromptOrder(
    token_ids=range(1, 40),
    num_blocks=2,
    fingerprint=ModelFingerprint("f"),
    layout_hash=LayoutHash("l"),
    salt="s",
    tenant=Tenant("t"),
    sources=[Source(0, 2, Datacenter("east"), ("e:1",))],
    codec=Codec.ZSTD,
    fidelity=Fidelity.INT8,
    pool_nodes=("w:1", "w:2"),
    priority=-3,
)
ORDER = GenerateOrder(
    prompt=PROMPT,
    sampling=SamplingParams(max_tokens=5),
    wait_ms=9,
    patience_s=1.5,
    num_generated=4,
    scoring=PromptScoring(17, 3),
)
WORKER = WorkerId("worker")


@asynccontextmanager
async def worker(behave: Behaviour) -> AsyncIterator[tuple[ScriptedWorker, Channels]]:
    servicer, server = ScriptedWorker(behave), GrpcServer("127.0.0.1", 0, Health(), InFlight())
    add_DecodeServicer_to_server(servicer, server.grpc)
    add_PrefillServicer_to_server(servicer, server.grpc)
    servicer.address = f"127.0.0.1:{await server.start()}"
    try:
        async with Channels() as channels:
            yield servicer, channels
    finally:
        await server.stop(0)


both_forms = pytest.mark.parametrize("may_change", [False, True])
"""Of a call: its request alone, and one that may be changed later."""


@asynccontextmanager
async def decoding(behave: Behaviour, may_change: bool) -> AsyncIterator[tuple[ScriptedWorker, DecodeCall]]:
    async with worker(behave) as (servicer, channels):
        call = DecodeClient(channels).call(WORKER, servicer.address, may_change=may_change)
        try:
            yield servicer, call
        finally:
            call.cancel()
            await call.ended()


def says_messages(*messages: pb.Tokens) -> Behaviour:
    async def behave(_call: Call) -> AsyncIterator[pb.Tokens]:
        for message in messages:
            yield message

    return behave


async def prefilled(behave: Behaviour, timeout_s: float = LIMIT_S) -> tuple[list[int], Any]:
    """Return what a prefill reported, and the request that the worker had got."""
    async with worker(behave) as (servicer, channels):
        steps = PrefillClient(channels).prefill(WORKER, servicer.address, PROMPT, timeout_s)
        return [news.computed_tokens async for news in steps], servicer.calls[0].request


def missing(message: Message) -> set[str]:
    """Return the fields that a message of the contract does not say."""
    return {field.name for field in message.DESCRIPTOR.fields} - {field.name for field, _ in message.ListFields()}


@both_forms
async def test_decode_is_told_every_field_of_the_contract(may_change: bool) -> None:
    async with decoding(says_messages(pb.Tokens(ids=[7], finish_reason=pb.FINISH_REASON_STOP)), may_change) as (
        servicer,
        call,
    ):
        await call.start(ORDER, LIMIT_S)
        await call.next_tokens()
        told = servicer.calls[0].request
    assert missing(told) == set()
    assert (list(told.token_ids), told.num_blocks, told.salt, told.tenant) == (list(range(1, 40)), 2, "s", "t")
    assert (told.fingerprint, told.layout_hash) == ("f", "l")
    assert (told.codec, told.fidelity, told.priority) == (pb.CODEC_ZSTD, pb.FIDELITY_INT8, -3)
    assert (told.wait_ms, told.patience_ms, told.num_generated, told.sampling.max_tokens) == (9, 1500, 4, 5)
    assert (told.scoring.first, told.scoring.num_top) == (17, 3)
    assert list(told.pool_nodes) == ["w:1", "w:2"]
    assert list(told.sources) == [pb.Source(first=0, end=2, dc="east", nodes=["e:1"])]


async def test_prefill_is_told_every_field_of_the_contract() -> None:
    reported, told = await prefilled(prefills(40))
    assert reported == [16, 40]
    assert missing(told) == set()
    assert (list(told.token_ids), told.num_blocks, told.salt, told.tenant) == (list(range(1, 40)), 2, "s", "t")
    assert (told.fingerprint, told.layout_hash) == ("f", "l")
    assert (told.codec, told.fidelity, told.priority) == (pb.CODEC_ZSTD, pb.FIDELITY_INT8, -3)
    assert list(told.pool_nodes) == ["w:1", "w:2"]
    assert list(told.sources) == [pb.Source(first=0, end=2, dc="east", nodes=["e:1"])]


@both_forms
async def test_tokens_come_in_the_suites_own_types_and_the_end_is_no_cancellation(may_change: bool) -> None:
    first = pb.Tokens(
        ids=[7],
        computed_prompt_tokens=3,
        logprobs=[pb.TokenLogprobs(logprob=-0.5, top_ids=[7, 8], top_logprobs=[-0.5, -2.0])],
    )
    prompt = pb.Tokens(prompt_logprobs=[pb.TokenLogprobs(logprob=-3, top_ids=[5], top_logprobs=[-1], rank=9)])
    last = pb.Tokens(ids=[8, 9], finish_reason=pb.FINISH_REASON_LENGTH)
    async with decoding(says_messages(prompt, first, last), may_change) as (servicer, call):
        await call.start(ORDER, LIMIT_S)
        of_prompt = DecodedTokens((), None, 0, prompt_logprobs=(TokenLogprobs(-3, ((5, -1),), 9),))
        assert await call.next_tokens() == of_prompt
        assert await call.next_tokens() == DecodedTokens((7,), None, 3, (TokenLogprobs(-0.5, ((7, -0.5), (8, -2.0))),))
        assert await call.next_tokens() == DecodedTokens((8, 9), "length", 0)
        await call.finish(LIMIT_S)
        await servicer.calls[0].over.wait()
        assert not servicer.calls[0].cancelled


@both_forms
async def test_messages_that_come_again_and_long_ones_are_read_as_any(may_change: bool) -> None:
    told = [
        *(pb.Tokens(ids=[7], computed_prompt_tokens=number) for number in (0, 3, 0)),
        pb.Tokens(rescued=True),
        pb.Tokens(ids=range(100)),
        pb.Tokens(ids=[7], finish_reason=pb.FINISH_REASON_STOP),
    ]
    async with decoding(says_messages(*told), may_change) as (_, call):
        await call.start(ORDER, LIMIT_S)
        assert [await call.next_tokens() for _ in told] == [
            *(DecodedTokens((7,), None, number) for number in (0, 3, 0)),
            DecodedTokens((), None, 0, rescued=True),
            DecodedTokens(tuple(range(100)), None, 0),
            DecodedTokens((7,), "stop", 0),
        ]


async def test_log_probabilities_that_are_not_parallel_are_the_workers_fault() -> None:
    odd = pb.Tokens(ids=[1, 2], logprobs=[pb.TokenLogprobs(logprob=-1)], finish_reason=pb.FINISH_REASON_STOP)
    async with decoding(says_messages(odd), may_change=False) as (_, call):
        await call.start(ORDER, LIMIT_S)
        with pytest.raises(Internal, match="1 log-probabilities for 2 tokens"):
            await call.next_tokens()


async def test_decode_learns_of_a_failed_prefill() -> None:
    async def when_updated(call: Call) -> AsyncIterator[pb.Tokens]:
        await call.updated.wait()
        yield pb.Tokens(ids=[1], finish_reason=pb.FINISH_REASON_STOP)

    async with decoding(when_updated, may_change=True) as (servicer, call):
        await call.start(ORDER, LIMIT_S)
        await call.prefill_failed()
        assert (await call.next_tokens()).finish_reason == "stop"
        assert [update.prefill_failed for update in servicer.calls[0].updates] == [True]


@both_forms
async def test_a_stream_that_ends_without_a_reason_is_a_lost_worker(may_change: bool) -> None:
    async with decoding(says_messages(pb.Tokens(ids=[1])), may_change) as (_, call):
        await call.start(ORDER, LIMIT_S)
        await call.next_tokens()
        with pytest.raises(WorkerLost, match="without a finish reason"):
            await call.next_tokens()
    with pytest.raises(WorkerLost, match="before it was finished"):
        await prefilled(says_messages())


@both_forms
async def test_an_error_keeps_its_class_and_what_is_written_afterwards_does_not_fail(may_change: bool) -> None:
    async with decoding(raises(Overloaded("full")), may_change) as (_, call):
        await call.start(ORDER, LIMIT_S)
        with pytest.raises(Overloaded, match="full"):
            await call.next_tokens()
        await call.prefill_failed()
        await call.start(ORDER, LIMIT_S)
    with pytest.raises(Overloaded, match="full"):
        await prefilled(raises(Overloaded("full")))


@both_forms
async def test_the_deadline_is_the_calls(may_change: bool) -> None:
    async with decoding(hangs, may_change) as (_, call):
        await call.start(ORDER, 0.2)
        with pytest.raises(DeadlineExceeded):
            await call.next_tokens()
    with pytest.raises(DeadlineExceeded):
        await prefilled(hangs, timeout_s=0.2)


@both_forms
@pytest.mark.parametrize("timeout_s", [0.0, 0.0005, 0.01])
async def test_a_call_that_is_over_before_its_request_is_out_says_why_when_it_is_read(
    timeout_s: float, may_change: bool
) -> None:
    async with worker(hangs) as (servicer, channels):
        for _ in range(20):
            call = DecodeClient(channels).call(WORKER, servicer.address, may_change=may_change)
            await call.start(ORDER, timeout_s)  # the call's end meets the write at whatever stage that is
            with pytest.raises((DeadlineExceeded, Internal)):  # gRPC's own word if it could not send what it had begun
                await call.next_tokens()
            call.cancel()
            await call.ended()


async def test_a_call_that_was_never_started_is_over() -> None:
    async with decoding(hangs, may_change=False) as (_, call):
        with pytest.raises(WorkerLost):
            await call.next_tokens()


async def test_closing_a_prefill_cancels_it() -> None:
    async def progresses(_call: Call) -> AsyncIterator[pb.Progress]:
        yield pb.Progress(computed_tokens=16)
        await asyncio.Event().wait()

    async with worker(progresses) as (servicer, channels):
        async with aclosing(PrefillClient(channels).prefill(WORKER, servicer.address, PROMPT, LIMIT_S)) as steps:
            assert (await anext(steps)).computed_tokens == 16
        async with asyncio.timeout(LIMIT_S):
            await servicer.calls[0].over.wait()
        assert servicer.calls[0].cancelled


@both_forms
async def test_cancelling_decode_reaches_the_worker(may_change: bool) -> None:
    async with decoding(hangs, may_change) as (servicer, call):
        await call.start(ORDER, LIMIT_S)
        await servicer.called.wait()
        call.cancel()
        await call.ended()
        async with asyncio.timeout(LIMIT_S):
            await servicer.calls[0].over.wait()
        assert servicer.calls[0].cancelled


def test_what_is_no_message_is_an_error_of_the_worker() -> None:
    with pytest.raises(Internal, match="no message"):
        DecodedTokens.parsed(b"\xff\xff")
