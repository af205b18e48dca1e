"""Processes that hang instead of dying: a stopped one answers nothing, and its connections stay open."""

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.support.checkpoints import VOCAB, served
from tests.support.suite import Suite, running_suite
from tests.support.waiting import LIMIT_S

pytestmark = [pytest.mark.suite, pytest.mark.timeout(240)]

DECODES = ("decode-west", "decode-west-2")
PREFILLS = ("prefill-east", "prefill-east-2")
SERVICES = ("cachepool-east", "cachepool-west", *PREFILLS, *DECODES, "gateway")
ANSWER_TOKENS, PROMPT_TOKENS = 4_000, 3_000
LONGEST_PAUSE_S = 15.0
"""No promise, for it includes a crowded machine: before, a stopped worker was waited for until it went on."""


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    with running_suite(tmp_path, SERVICES, **served(tmp_path), PRFAAS_CHUNK_TOKENS="64") as suite:
        yield suite


@contextmanager
def stopped(suite: Suite, name: str) -> Iterator[None]:
    """Let a process hang in the body."""
    os.kill(suite.pid(name), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(suite.pid(name), signal.SIGCONT)


def prompt_of(num_tokens: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, VOCAB) for _ in range(num_tokens)]


@asynccontextmanager
async def streamed(suite: Suite, prompt: list[int], num_tokens: int) -> AsyncIterator[AsyncIterator[str]]:
    """Yield the pieces of a streamed greedy answer's text. Fails when the stream breaks off."""
    body = {"prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True, "stream": True}

    async def pieces(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line.removeprefix(b"data: "))
                assert "error" not in event, event
                yield event["choices"][0]["text"]

    async with aiohttp.ClientSession() as session, session.post(f"{suite.url}/v1/completions", json=body) as response:
        yield pieces(response)


async def who_runs(suite: Suite, names: tuple[str, ...], metric: str) -> str:
    """Return the worker that has something of a metric, once one has."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            for name in names:
                if await suite.metric(name, metric):
                    return name
            await asyncio.sleep(0.01)


async def problems(suite: Suite) -> list[str]:
    async with aiohttp.ClientSession() as session, session.get(f"{suite.url}/health") as response:
        found: list[str] = (await response.json())["problems"]
        return found


async def test_a_stream_goes_on_when_its_decode_worker_hangs_and_the_text_is_the_same(suite: Suite) -> None:
    await suite.ready()
    prompt = prompt_of(300, seed=1)
    undisturbed = await suite.complete(prompt, ANSWER_TOKENS)
    text, longest_s = "", 0.0
    async with streamed(suite, prompt, ANSWER_TOKENS) as pieces:
        text += await anext(pieces)
        hung = await who_runs(suite, DECODES, "num_requests_running")
        with stopped(suite, hung):
            last = time.monotonic()
            async for piece in pieces:
                now = time.monotonic()
                longest_s, last = max(longest_s, now - last), now
                text += piece
            assert any(problem.startswith(hung) for problem in await problems(suite))
            again = await suite.complete(prompt_of(200, seed=2))  # nobody is sent there
    assert text == undisturbed["choices"][0]["text"]
    assert longest_s < LONGEST_PAUSE_S
    await suite.ready()  # it is asked again, once it goes on
    await suite.assert_idle()
    assert await suite.complete(prompt_of(200, seed=2)) | {"id": 0, "created": 0, "usage": 0} == again | {
        "id": 0,
        "created": 0,
        "usage": 0,
    }


async def test_a_prompt_is_finished_elsewhere_when_its_prefill_worker_hangs(suite: Suite) -> None:
    await suite.ready()
    prompt = prompt_of(PROMPT_TOKENS, seed=3)
    request = asyncio.create_task(suite.complete(prompt))
    hung = await who_runs(suite, PREFILLS, "prefill_computed_tokens_total")
    with stopped(suite, hung):
        answer = await request
    alone = await suite.complete(prompt, cache_salt="computed once more")
    assert alone["choices"][0]["text"] == answer["choices"][0]["text"]
    await suite.ready()
    await suite.assert_idle()


@pytest.mark.parametrize("pool", ["cachepool-east", "cachepool-west"])
async def test_answers_come_while_a_pool_hangs(suite: Suite, pool: str) -> None:
    await suite.ready()
    prompt = prompt_of(PROMPT_TOKENS, seed=4)
    undisturbed = await suite.complete(prompt, cache_salt="before")
    with stopped(suite, pool):
        async with asyncio.timeout(2 * LONGEST_PAUSE_S):
            answers = await asyncio.gather(*(suite.complete(prompt, cache_salt=salt) for salt in ("one", "two")))
    for answer in answers:
        assert answer["choices"][0]["text"] == undisturbed["choices"][0]["text"]
    await suite.ready()
    await suite.assert_idle()
