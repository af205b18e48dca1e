"""The load generator against a small server of known behaviour."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks import harness, serve
from benchmarks.client import RequestOutcome
from benchmarks.prompts import words

FIRST_TOKEN_S = 0.05
TOKEN_S = 0.02


class FakeServer:
    """Streams `max_tokens` tokens at a known pace and keeps what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = self.most_in_flight = 0
        self.fail: str | None = None
        self.has_tokenize = True

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_post("/v1/completions", self.completions)
        return app

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "fake"}]})

    async def tokenize(self, request: web.Request) -> web.Response:
        if not self.has_tokenize:
            return web.Response(status=404)
        text = (await request.json())["prompt"]
        # Two words make one token: the generator has to ask for more text.
        ids = list(range(len(text.split()) // 2))
        return web.json_response({"tokens": ids, "count": len(ids)})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if self.fail == "status":
            return web.json_response({"error": {"message": "too busy"}}, status=429)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for i in range(body["max_tokens"]):
            await asyncio.sleep(TOKEN_S if i else FIRST_TOKEN_S)
            await send(response, {"choices": [{"text": f"t{i} ", "finish_reason": None}]})
            if self.fail == "stream":
                await send(response, {"error": {"message": "worker lost"}})
                await response.write(b"data: [DONE]\n\n")
                return response
            if self.fail == "cut":
                return response
        await send(response, {"choices": [{"text": "", "finish_reason": "length"}]})
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        await send(response, {"choices": [], "usage": usage | {"prompt_tokens_details": {"cached_tokens": 3}}})
        await response.write(b"data: [DONE]\n\n")
        self.in_flight -= 1
        return response


async def send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    raw = f"data: {json.dumps(event)}\n\n".encode()
    # In two pieces: a client must not rely on where the network cuts.
    await response.write(raw[:7])
    await response.write(raw[7:])


@pytest.fixture
async def fake() -> FakeServer:
    return FakeServer()


@pytest.fixture
async def load(fake: FakeServer) -> AsyncIterator[serve.Load]:
    async with TestServer(fake.app()) as server:
        yield serve.Load(url=str(server.make_url("")).rstrip("/"), input_len=700, output_len=5, num_prompts=3)


async def test_measures_what_the_server_does(fake: FakeServer, load: serve.Load) -> None:
    row, outcomes = await serve.serve(load)
    assert row["completed"] == 3
    assert row["failed"] == 0
    assert row["total_input_tokens"] == 3 * 700
    assert row["total_output_tokens"] == 3 * 5
    assert row["total_cached_tokens"] == 9
    assert row["request_goodput"] is None
    assert [outcome.text for outcome in outcomes] == ["t0 t1 t2 t3 t4 "] * 3
    assert all(len(outcome.token_times_s) == 5 for outcome in outcomes)
    assert FIRST_TOKEN_S * 1000 <= number(row["median_ttft_ms"]) < 15_000
    assert TOKEN_S * 900 <= number(row["mean_itl_ms"]) < 15_000
    assert number(row["median_e2el_ms"]) >= number(row["median_ttft_ms"]) + 4 * TOKEN_S * 900
    expected = {f"{s}_{m}_ms" for s in ("mean", "median", "std", "p99") for m in ("ttft", "tpot", "itl", "e2el")}
    assert expected <= set(row)


async def test_asks_for_exact_lengths_with_stable_distinct_prompts(fake: FakeServer, load: serve.Load) -> None:
    await serve.serve(load)
    body = fake.bodies[0]
    assert [len(body["prompt"]) for body in fake.bodies] == [700] * 3
    assert body["max_tokens"] == 5
    assert body["ignore_eos"] is True
    assert body["stream_options"] == {"include_usage": True}


async def test_words_where_there_is_no_tokenizer(fake: FakeServer, load: serve.Load) -> None:
    fake.has_tokenize = False
    await serve.serve(replace(load, ignore_eos=False))
    assert [len(body["prompt"].split()) for body in fake.bodies] == [700] * 3
    assert len({body["prompt"] for body in fake.bodies}) == 3
    assert "ignore_eos" not in fake.bodies[0]


@pytest.mark.parametrize(
    ("fail", "message"),
    [("status", "HTTP 429"), ("stream", "worker lost"), ("cut", "without [DONE]")],
)
async def test_failures_are_counted_and_named(fake: FakeServer, load: serve.Load, fail: str, message: str) -> None:
    fake.fail = fail
    row, outcomes = await serve.serve(load)
    assert (row["completed"], row["failed"]) == (0, 3)
    assert all(message in (outcome.error or "") for outcome in outcomes)
    assert row["median_ttft_ms"] is None


async def test_concurrency_is_bounded(fake: FakeServer, load: serve.Load) -> None:
    await serve.serve(replace(load, max_concurrency=1))
    assert fake.most_in_flight == 1
    await serve.serve(load)
    assert fake.most_in_flight == 3


async def test_goodput_counts_the_requests_that_meet_the_objective(load: serve.Load) -> None:
    row, _ = await serve.serve(load, serve.LatencyLimits(ttft_s=0.001))
    assert row["request_goodput"] == 0
    row, _ = await serve.serve(load, serve.LatencyLimits(ttft_s=10, tpot_s=10))
    assert row["request_goodput"] == row["request_throughput"]


def test_the_command_line_writes_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def measured(load: serve.Load, slo: object, progress: bool) -> tuple[harness.Row, list[RequestOutcome]]:
        return {"completed": load.num_prompts, "duration": load.request_rate}, []

    monkeypatch.setattr(serve, "serve", measured)
    path = tmp_path / "out.json"
    arguments = ["--url", "http://h/", "--num-prompts", "9", "--request-rate", "2.5", "--json", str(path)]
    assert harness.main("serve", serve.measure, serve.add_options, arguments) == 0
    written = json.loads(path.read_text())
    assert written["rows"] == [{"completed": 9, "duration": 2.5}]
    assert written["settings"]["request_rate"] == 2.5
    assert "url" not in written["settings"]


def test_prompts_depend_on_the_seed_only() -> None:
    for dataset in ("random", "text"):
        assert words(dataset, 1, 50) == words(dataset, 1, 50)
        assert words(dataset, 1, 50) != words(dataset, 2, 50)
        assert len(words(dataset, 1, 50).split()) == 50


def test_percentile_interpolates() -> None:
    assert serve.percentile([1, 2, 3, 4], 50) == 2.5
    assert serve.percentile([7], 99) == 7


def number(cell: harness.Cell) -> float:
    assert isinstance(cell, int | float)
    return cell
