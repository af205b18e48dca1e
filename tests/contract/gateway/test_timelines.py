"""Timelines, the live state and the page over HTTP: what scripted workers say arrives where people look."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from services.gateway.web.live import MAX_LISTENERS
from services.gateway.web.page import STATIC
from shared.errors import WorkerLost
from shared.proto import prfaas_pb2 as pb
from tests.support.gateway import Call, ScriptedSuite, hangs, ids_of, prefills, raises, running_suite, says
from tests.support.timed import prefills_timed, says_timed
from tests.support.waiting import eventually

LONG = "x" * 100  # 6 prefix blocks of 16, above the offload threshold of 32 tokens


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    async with running_suite(tmp_path) as suite:
        yield suite


async def get(suite: ScriptedSuite, path: str) -> Any:
    async with suite.client.get(path) as response:
        return await response.json()


async def timeline(suite: ScriptedSuite, answer: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = await get(suite, f"/v1/requests/{answer['id'].partition('-')[2]}/timeline")
    return found


async def moment(suite: ScriptedSuite) -> dict[str, Any]:
    """Return one event of the live state."""
    async with suite.client.get("/v1/live") as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert await response.content.readline() == b"event: state\n"
        data: dict[str, Any] = json.loads((await response.content.readline()).removeprefix(b"data: "))
        return data


async def test_a_remote_prefill_is_told_phase_by_phase(suite: ScriptedSuite) -> None:
    suite.prefill.behave, suite.decode.behave = prefills_timed(96), says_timed("hello", computed=4)
    found = await timeline(suite, await suite.complete(prompt=LONG, max_tokens=5))
    assert (found["state"], found["status"], found["plan"]) == ("finished", 200, "remote")
    assert (found["prompt_tokens"], found["cached_tokens"], found["completion_tokens"]) == (100, 0, 5)
    (choice,) = found["choices"]
    (attempt,) = choice["attempts"]
    (prefill,) = attempt["prefills"]
    phases = [found["body_read_s"], found["prepared_s"], choice["begun_s"], choice["planned_s"], choice["passed_s"]]
    phases += [attempt["begun_s"], attempt["first_token_s"], found["ended_s"]]
    assert phases == sorted(phases)
    assert choice["tokens"]["count"] == 5
    assert choice["tokens"]["counts"][-1] == 5
    assert choice["finish_reason"] == "length"
    assert attempt["plan"]["decode_sources"] == [{"first": 0, "end": 6, "dc": "east"}]
    assert (prefill["worker"], prefill["computed_tokens"], prefill["error"]) == ("prefill-east", 96, None)
    times = prefill["worker_times"]
    assert [round(at - prefill["sent_s"], 3) for at in times["layers_computed"][1]] == [0.02, 0.04]
    assert attempt["decode"]["worker_times"]["fetched_bytes"] == 4096
    assert len(attempt["decode"]["worker_times"]["layers_landed"]) == 2


async def test_workers_that_tell_no_times_leave_a_timeline_all_the_same(suite: ScriptedSuite) -> None:
    suite.prefill.behave = prefills(96)
    found = await timeline(suite, await suite.complete(prompt=LONG, max_tokens=2))
    attempt = found["choices"][0]["attempts"][0]
    assert attempt["prefills"][0]["worker_times"] is None
    assert attempt["decode"]["worker_times"] is None
    assert attempt["first_token_s"] > 0


async def test_what_failed_is_in_the_timeline(suite: ScriptedSuite) -> None:
    spare = await suite.join("decode-west-2", "decode", "west", says("ok"))
    suite.decode.behave = raises(WorkerLost("gone"))
    found = await timeline(suite, await suite.complete(max_tokens=2))
    attempts = found["choices"][0]["attempts"]
    tried = [(attempt["decode"]["worker"], attempt["error"]) for attempt in attempts]
    assert tried[-1][1] is None
    assert len(spare.calls) == 1
    assert all(error == "worker_lost" for _, error in tried[:-1])


async def test_a_refused_request_is_listed_with_its_error(suite: ScriptedSuite) -> None:
    async with suite.client.post("/v1/completions", json={"prompt": "x", "max_tokens": -1}) as response:
        assert response.status == 400
    (found,) = (await get(suite, "/v1/requests"))["data"]
    assert (found["state"], found["status"], found["plan"]) == ("failed", 400, None)


async def test_a_running_request_is_listed_and_so_is_its_end(suite: ScriptedSuite) -> None:
    suite.decode.behave = hangs
    asking = asyncio.create_task(
        suite.client.post("/v1/completions", json={"prompt": "hello"}, headers={"X-Request-Id": "mine/1"})
    )
    await suite.decode.called.wait()
    running = await get(suite, "/v1/requests/mine%2F1/timeline")
    assert (running["state"], running["ended_s"], running["choices"][0]["tokens"]["count"]) == ("running", None, 0)
    asking.cancel()
    await asyncio.wait({asking})

    async def has_ended() -> bool:
        found = await get(suite, "/v1/requests/mine%2F1/timeline")
        return (found["state"], found["error"]) == ("cancelled", "cancelled")

    await eventually(has_ended)


async def test_a_client_that_hangs_up_behind_the_end_of_its_answer_has_had_all_of_it(suite: ScriptedSuite) -> None:
    async def lingers(call: Call) -> AsyncIterator[Any]:
        """End the answer, not the call: the gateway still waits for its end when the client leaves."""
        yield pb.Tokens(ids=ids_of("a"), finish_reason=pb.FINISH_REASON_LENGTH)
        await asyncio.Event().wait()

    suite.decode.behave = lingers
    headers = {"X-Request-Id": "mine"}
    body = {"prompt": "hello", "stream": True}
    with capture_logs() as logs:
        async with (
            aiohttp.ClientSession(suite.client._base_url) as leaving,
            leaving.post("/v1/completions", json=body, headers=headers) as response,
        ):
            assert (await response.read()).endswith(b"data: [DONE]\n\n")

        async def has_ended() -> bool:
            return bool((await get(suite, "/v1/requests/mine/timeline"))["state"] != "running")

        await eventually(has_ended)
    found = await get(suite, "/v1/requests/mine/timeline")
    assert (found["state"], found["status"], found["error"]) == ("finished", 200, None)
    assert [line["status"] for line in logs if line.get("path") == "/v1/completions"] == [200]


async def test_requests_are_listed_newest_first_and_within_bounds(suite: ScriptedSuite) -> None:
    ids = [(await suite.complete(max_tokens=1))["id"].partition("-")[2] for _ in range(3)]
    listed = await get(suite, "/v1/requests")
    assert [row["id"] for row in listed["data"]] == ids[::-1]
    page = await get(suite, f"/v1/requests?limit=1&before={listed['data'][0]['number']}")
    assert [row["id"] for row in page["data"]] == [ids[1]]


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=x", "limit=1001", "before=0", "before=%C2%B2"])
async def test_wrong_bounds_are_refused(suite: ScriptedSuite, query: str) -> None:
    async with suite.client.get(f"/v1/requests?{query}") as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == query.partition("=")[0]


async def test_a_request_that_is_not_known_is_not_found(suite: ScriptedSuite) -> None:
    async with suite.client.get("/v1/requests/nobody/timeline") as response:
        assert response.status == 404


async def test_the_live_state_shows_the_cluster_and_what_has_changed(suite: ScriptedSuite) -> None:
    answer = await suite.complete(max_tokens=1)
    state = await moment(suite)
    assert (state["home"], state["datacenters"]) == ("west", ["west", "east"])
    assert {worker["id"]: worker["state"] for worker in state["workers"]} == {
        "decode-west": "ready",
        "prefill-east": "ready",
    }
    assert [row["id"] for row in state["requests"]["changed"]] == [answer["id"].partition("-")[2]]
    assert state["requests"]["num_taken"] == 1


async def test_listeners_are_bounded_and_their_places_come_back(suite: ScriptedSuite) -> None:
    listening = [await suite.client.get("/v1/live") for _ in range(MAX_LISTENERS)]
    async with suite.client.get("/v1/live") as refused:
        assert refused.status == 429
    for response in listening:
        response.close()

    async def has_room() -> bool:
        async with suite.client.get("/v1/live") as response:
            return response.status == 200

    await eventually(has_room)


async def test_the_page_loads_nothing_from_elsewhere(suite: ScriptedSuite) -> None:
    async with suite.client.get("/") as response:
        assert response.status == 200
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        tag = response.headers["ETag"]
        assert "//" not in (await response.text()).replace("<!doctype", "")
    async with suite.client.get("/", headers={"If-None-Match": tag}) as again:
        assert again.status == 304
    for path in STATIC.iterdir():
        async with suite.client.get(f"/page/{path.name}") as response:
            assert response.status == 200, path.name
            assert await response.read() == path.read_bytes()
    async with suite.client.get("/page/..%2Fpage.py") as outside:
        assert outside.status == 404


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < 64_000
