"""When decode begins and what it learns of prefill, streaming and set to store and forward."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from services.gateway.api.bodies.completion import CompletionBody
from services.gateway.api.prepare import prepare_completion
from services.gateway.app import make_pipeline
from services.gateway.request.attempt import HandOffTerms
from services.gateway.request.usage import PromptUsage
from services.gateway.routing.policies.threshold import Threshold
from services.gateway.routing.router import Router
from shared.deadline import Deadline
from shared.errors import Internal
from shared.ids import Datacenter
from shared.proto import prfaas_pb2 as pb
from tests.support.gateway import (
    LAYOUT,
    Call,
    ScriptedSuite,
    bytes_of,
    prefills,
    raises,
    running_suite,
    says,
)
from tests.support.waiting import until

PROMPT = "a prompt of several blocks, which goes to the prefill worker of the other datacenter"


@pytest.fixture
async def storing(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    """Store and forward, which benchmarks compare streaming with."""
    async with running_suite(tmp_path, hand_off="stored") as suite:
        yield suite


async def test_decode_begins_when_prefill_has_ended(storing: ScriptedSuite) -> None:
    async def decode_would_have_been_called() -> None:
        await asyncio.sleep(0.2)
        assert not storing.decode.calls

    storing.prefill.behave = prefills(80, after=decode_would_have_been_called)
    await storing.complete(prompt=PROMPT, max_tokens=2)
    assert storing.prefill.calls[0].over.is_set()
    assert storing.metric("prefill_failures_total", code="internal") == 0


async def test_decode_learns_of_a_prefill_that_failed_before_it_began(storing: ScriptedSuite) -> None:
    async def behave(call: Call) -> AsyncIterator[pb.Tokens]:
        await call.updated.wait()
        async for message in says("late")(call):
            yield message

    storing.prefill.behave = raises(Internal("out of memory"))
    storing.decode.behave = behave
    answer = await storing.complete(prompt=PROMPT, max_tokens=2)
    assert answer["usage"]["completion_tokens"] == 2
    assert [update.prefill_failed for update in storing.decode.calls[0].updates] == [True]


async def test_a_prefill_that_fails_when_decode_has_said_everything_costs_no_token(tmp_path: Path) -> None:
    async with running_suite(tmp_path) as suite:

        async def fails_late(_call: Call) -> AsyncIterator[Any]:
            await suite.decode.called.wait()
            await suite.decode.calls[0].over.wait()
            raise Internal("out of memory")
            yield  # type: ignore[unreachable]  # makes this a generator

        suite.decode.behave = says("all of it")
        suite.prefill.behave = fails_late
        (request,) = prepare_completion(suite.parts.model, CompletionBody(prompt=PROMPT, max_tokens=9)).requests
        router = Router(Datacenter("west"), LAYOUT, Threshold(32))
        pipeline = make_pipeline(suite.parts, router, HandOffTerms(block_wait_ms=1000))
        ids: list[int] = []
        async with aclosing(pipeline.generate(request, PromptUsage(84), Deadline.after(10))) as events:
            async for event in events:
                ids += event.ids
                # Until then the other tokens wait unread: telling decode meets a stream that has ended.
                await until(lambda: len(suite.parts.promises) == 0)
        assert bytes_of(ids) == b"all of it"
