"""Admission as clients see it: latencies in headers, 429 with a time to come back, turns of tenants."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.gateway.admission.window import STANDS_BACK
from tests.support.gateway import Call, ScriptedSuite, hangs, running_suite, says
from tests.support.waiting import LIMIT_S, until

PROMPT = "x" * 100


class HeldDecode:
    """A decode worker that answers when it is let to, in the order in which it was called."""

    def __init__(self) -> None:
        self.prompts: list[int] = []
        self.priorities: list[int] = []
        self._may_answer = asyncio.Semaphore(0)

    async def __call__(self, call: Call) -> AsyncIterator[Any]:
        self.prompts.append(call.request.token_ids[0])
        self.priorities.append(call.request.priority)
        await self._may_answer.acquire()
        async for tokens in says("a")(call):
            yield tokens

    def answer(self, num: int) -> None:
        for _ in range(num):
            self._may_answer.release()


async def status_of(suite: ScriptedSuite, headers: dict[str, str] | None = None, **body: Any) -> tuple[int, Any, Any]:
    """Return status, body and Retry-After."""
    async with suite.client.post(
        "/v1/completions", json={"prompt": PROMPT, "max_tokens": 1, **body}, headers=headers
    ) as response:
        return response.status, await response.json(), response.headers.get("Retry-After")


def ask(suite: ScriptedSuite, first_id: int, salt: str | None = None, **more: Any) -> "asyncio.Task[Any]":
    """Ask for a prompt that decode knows by its first token."""
    body = {"prompt": [first_id] * 100, "max_tokens": 1, "cache_salt": salt, **more}
    return asyncio.create_task(status_of(suite, **body))


async def until_waiting(suite: ScriptedSuite, number: int) -> None:
    await until(lambda: suite.metric("num_requests_waiting", engine="gateway") == number)


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    """One prompt at a time: each costs more than the window."""
    async with running_suite(
        tmp_path,
        routing_policy="threshold",
        decode_threshold_tokens=1000,
        dispatch_window_s=1e-3,
        max_queued_of_tenant=8,
    ) as suite:
        yield suite


@pytest.mark.parametrize("name", ["x-slo-ttft-ms", "x-slo-tpot-ms"])
async def test_an_objective_that_is_no_number_is_refused(suite: ScriptedSuite, name: str) -> None:
    status, answer, _ = await status_of(suite, {name: "quick"})
    assert status == 400
    assert answer["error"]["param"] == name
    assert (await status_of(suite, {name: "60000"}))[0] == 200


async def test_a_request_that_would_be_late_is_told_when_to_come_back(suite: ScriptedSuite) -> None:
    status, answer, retry_after = await status_of(suite, {"x-slo-ttft-ms": "0.001"})
    assert (status, answer["error"]["code"], answer["error"]["type"]) == (429, "slo_ttft_unmet", "rate_limit_error")
    assert retry_after is None  # no worker is so quick
    suite.decode.behave = HeldDecode()
    waiting = [ask(suite, number) for number in range(5)]
    await until_waiting(suite, 4)
    status, answer, retry_after = await status_of(suite, {"x-slo-ttft-ms": "50"})
    assert (status, answer["error"]["code"]) == (429, "slo_ttft_unmet")
    assert int(retry_after) >= 1
    assert suite.metric("admission_rejections_total", reason="ttft") == 2
    suite.decode.behave.answer(5)
    assert [answered[0] for answered in await asyncio.gather(*waiting)] == [200] * 5


async def test_the_default_objective_holds_for_requests_that_do_not_say(tmp_path: Path) -> None:
    async with running_suite(tmp_path, slo_ttft_s=1e-6) as suite:
        assert (await status_of(suite))[0] == 429
        assert (await status_of(suite, {"x-slo-ttft-ms": "60000"}))[0] == 200


async def test_tenants_take_turns_and_priorities_count_within_them(suite: ScriptedSuite) -> None:
    worker = suite.decode.behave = HeldDecode()
    asked = [ask(suite, 0, "flooder")]
    await until(lambda: worker.prompts)
    for number in range(1, 6):
        asked.append(ask(suite, number, "flooder", priority=-number))
        await until_waiting(suite, number)
    asked += [ask(suite, 7, "other")]  # uses nothing yet: it does not wait
    await until(lambda: len(worker.prompts) == 2)
    worker.answer(7)
    assert [answered[0] for answered in await asyncio.gather(*asked)] == [200] * 7
    assert worker.prompts == [0, 7, 5, 4, 3, 2, 1]
    assert worker.priorities[1] == 0
    assert all(priority == STANDS_BACK for priority in worker.priorities[2:])


async def test_more_than_may_wait_are_refused_and_those_that_leave_make_room(suite: ScriptedSuite) -> None:
    suite.decode.behave = hangs
    asked = [ask(suite, number) for number in range(9)]
    await until_waiting(suite, 8)
    status, answer, retry_after = await status_of(suite)
    assert (status, answer["error"]["code"]) == (429, "queue_full")
    assert int(retry_after) >= 1
    for task in asked:
        task.cancel()
    await asyncio.wait(asked)
    await until(lambda: suite.inflight.count == 0)
    assert suite.metric("num_requests_waiting", engine="gateway") == 0
    await asyncio.wait_for(suite.works(), LIMIT_S)


async def test_too_many_requests_are_counted_by_their_reason(tmp_path: Path) -> None:
    async with running_suite(tmp_path, max_requests=1) as suite:
        suite.decode.behave = hangs
        running = ask(suite, 1)
        await suite.decode.called.wait()
        status, _, retry_after = await status_of(suite)
        assert (status, retry_after) == (429, "1")
        assert suite.metric("admission_rejections_total", reason="requests") == 1
        running.cancel()
        await asyncio.wait({running})
