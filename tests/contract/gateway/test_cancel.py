"""A client may vanish at every point of a request: both workers see it at once, and nothing is left behind."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from shared.proto import prfaas_pb2 as pb
from tests.support.gateway import Behaviour, Call, ScriptedSuite, hangs, prefills, running_suite, says
from tests.support.waiting import LIMIT_S, until

LONG = "x" * 100
WITHIN_S = 40.0  # less than half of what the answer would take


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    async with running_suite(tmp_path) as suite:
        yield suite


async def progresses(_call: Call) -> AsyncIterator[pb.Progress]:
    """A prefill worker in the middle of its work."""
    yield pb.Progress(num_blocks_done=1, computed_tokens=16)
    await asyncio.Event().wait()


async def vanish(suite: ScriptedSuite, reached: Callable[[], Awaitable[object]], *, stream: bool) -> None:
    """Send a request, wait for a point in its life, and close the connection."""
    async with aiohttp.ClientSession(suite.client._base_url) as client:
        body = {"prompt": LONG, "max_tokens": 1000, "stream": stream}
        request = asyncio.create_task(client.post("/v1/completions", json=body).__aenter__())
        await reached()
        request.cancel()
        await asyncio.wait({request})
        if not request.cancelled():
            request.result().close()


async def assert_all_is_over(suite: ScriptedSuite) -> None:
    calls = [*suite.decode.calls, *suite.prefill.calls]
    async with asyncio.timeout(WITHIN_S):
        await asyncio.gather(*(call.over.wait() for call in calls))
        await until(lambda: suite.inflight.count == 0)
    assert len(suite.parts.promises) == 0
    for worker in ("decode-west", "prefill-east"):
        assert suite.load(worker) == 0
    assert suite.metric("num_requests_running", engine="gateway") == 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("prefill", "decode", "wait_for"),
    [
        pytest.param(hangs, hangs, "both called", id="queued"),
        pytest.param(progresses, hangs, "both called", id="during-prefill"),
        pytest.param(prefills(96), hangs, "both called", id="during-transfer"),
        pytest.param(prefills(96), says("y" * 1000, pause_s=0.1), "tokens", id="during-decode"),
        pytest.param(progresses, says("y" * 1000, pause_s=0.1), "tokens", id="during-decode-and-prefill"),
    ],
)
async def test_a_vanished_client_cancels_both_workers(
    suite: ScriptedSuite, prefill: Behaviour, decode: Behaviour, wait_for: str, stream: bool
) -> None:
    suite.prefill.behave, suite.decode.behave = prefill, decode

    async def reached() -> None:
        await asyncio.gather(suite.decode.called.wait(), suite.prefill.called.wait())
        if wait_for == "tokens":
            await until(lambda: suite.metric("generation_tokens_total", engine="gateway"))
        if prefill not in (hangs, progresses):
            await suite.prefill.calls[0].over.wait()

    await vanish(suite, reached, stream=stream)
    await assert_all_is_over(suite)
    assert suite.decode.calls[0].cancelled
    assert suite.prefill.calls[0].cancelled == (prefill in (hangs, progresses))
    assert suite.metric("request_success_total", finished_reason="abort") == 1
    suite.prefill.behave = prefills(0)
    await suite.works()


async def test_a_client_that_vanishes_while_sending_its_body_leaves_nothing(suite: ScriptedSuite) -> None:
    host, port = suite.client._base_url.host, suite.client._base_url.port  # type: ignore[union-attr]
    _, writer = await asyncio.open_connection(host, port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    await writer.drain()
    await until(lambda: suite.inflight.count == 1)
    writer.close()
    await writer.wait_closed()
    await assert_all_is_over(suite)
    await suite.works()


async def test_one_of_several_prompts_failing_cancels_the_others(suite: ScriptedSuite) -> None:
    async def behave(call: Call) -> AsyncIterator[pb.Tokens]:
        if len(call.request.token_ids) == 1:
            raise RuntimeError("a bug in the worker")
        async for message in hangs(call):
            yield message

    suite.decode.behave = behave
    async with suite.client.post("/v1/completions", json={"prompt": ["long one", "s"]}) as response:
        assert response.status == 500
    await assert_all_is_over(suite)
    await suite.works()


async def test_a_client_that_stops_reading_holds_up_no_worker(suite: ScriptedSuite) -> None:
    suite.decode.behave = says("z" * 1900)
    host, port = suite.client._base_url.host, suite.client._base_url.port  # type: ignore[union-attr]
    _, writer = await asyncio.open_connection(host, port)
    body = b'{"prompt": "p", "max_tokens": 1900, "stream": true}'
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await suite.decode.called.wait()
    await asyncio.wait_for(suite.decode.calls[0].over.wait(), LIMIT_S)
    assert not suite.decode.calls[0].cancelled
    writer.close()
    await writer.wait_closed()
    await assert_all_is_over(suite)
