"""A real prompt through real processes: where it is computed, how it streams, what is reused, what a cancel leaves, and
that the tokens are those of `transformers`."""

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from benchmarks.exactness import Battery, ExactnessClient, Oracle, compare
from tests.support.suite import Suite, running_suite
from tests.support.texts import real_text
from tests.support.waiting import eventually

pytestmark = [pytest.mark.suite, pytest.mark.timeout(180)]

BLOCK = 64
LAYERS = 30


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """The default model in float32: what it computes can be compared token by token."""
    with running_suite(tmp_path_factory.mktemp("suite"), PRFAAS_DTYPE="float32", PRFAAS_KV_BYTES="2GiB") as suite:
        yield suite


def cached_tokens(answer: dict[str, Any]) -> int:
    count: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return count


def fresh(ids: list[int]) -> list[int]:
    """Return the prompt with a first token of its own, so that no earlier test has cached it."""
    return [random.randrange(1000, 40000), *ids[1:]]


async def test_a_long_prompt_is_prefilled_in_the_other_datacenter_and_streamed(suite: Suite) -> None:
    text = (await suite.tokenize(real_text(10_000)))[:1300]

    async def is_streamed() -> bool:
        before = await suite.metric("prefill-east", "prefill_computed_blocks_total")
        answer = await suite.complete(fresh(text), 1)
        assert answer["usage"]["prompt_tokens"] == 1300
        assert await suite.metric("prefill-east", "prefill_computed_blocks_total") - before == 20
        assert await suite.metric("prefill-west", "prefill_computed_blocks_total") == local
        request_id = answer["id"].partition("-")[2]
        prefilled = await suite.logged("prefill-east", "prompt_prefilled", request_id)
        tail = await suite.logged("decode-west", "tail_computed", request_id)
        assert prefilled["first_entry_sent_at_s"] < prefilled["computed_at_s"]
        # Layer 0 went before the last layer came, unless a process on its way stood still.
        return bool(tail["gate_opened_at_s"] < prefilled["last_entry_sent_at_s"])

    local = await suite.metric("prefill-west", "prefill_computed_blocks_total")
    await eventually(is_streamed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # transformers' own
async def test_greedy_tokens_equal_transformers(suite: Suite) -> None:
    """Prompts of one token, at the edges of a block and of a chunk, cold and cached, and several at once.

    The whole battery, both models and codecs, is `python -m benchmarks.exactness`.
    """
    oracle = Oracle("smollm2-135m-instruct")
    async with aiohttp.ClientSession() as session:
        rows = await compare(ExactnessClient(session, suite.url), oracle, "raw", Battery((1, 64, 65), 577, 8, 4))
    assert len(rows) == 3 + 3 + 4
    assert [row for row in rows if row["equal"] != row["tokens"]] == []
    assert {row["case"]: row["cached_tokens"] for row in rows if "cached" in str(row["case"])} == {
        "half cached": 256,
        "fully cached": 576,
    }


async def test_one_short_chunk_leaves_before_its_last_layer_is_computed(suite: Suite) -> None:
    prompt = fresh((await suite.tokenize(real_text(5_000, skip=30_000)))[:577])  # 576 tokens: one chunk and one block
    answer = await suite.complete(prompt, 1)
    prefilled = await suite.logged("prefill-east", "prompt_prefilled", answer["id"].partition("-")[2])
    assert prefilled["first_entry_sent_at_s"] < prefilled["computed_at_s"]


async def test_a_repeated_prompt_needs_no_prefill(suite: Suite) -> None:
    prompt = fresh((await suite.tokenize(real_text(8_000, skip=50_000)))[:800])
    first = await suite.complete(prompt)
    calls = [await suite.metric(name, "prefill_computed_tokens_total") for name in ("prefill-east", "prefill-west")]
    again = await suite.complete(prompt)
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    assert cached_tokens(again) == 799  # the last token is computed for what it predicts
    assert calls == [
        await suite.metric(name, "prefill_computed_tokens_total") for name in ("prefill-east", "prefill-west")
    ]


async def test_two_prompts_that_share_a_prefix_share_its_work(suite: Suite) -> None:
    shared = fresh((await suite.tokenize(real_text(8_000, skip=80_000)))[:1160])
    names = [
        ("prefill-east", "prefill_computed_blocks_total"),
        ("prefill-west", "prefill_computed_blocks_total"),
        ("cachepool-east", "entries_published_total"),
        ("cachepool-west", "pulled_entries_total"),
    ]
    before = [await suite.metric(*name) for name in names]
    await asyncio.gather(*(suite.complete([*shared, 100 + i, *shared[:40]], 4) for i in range(2)))
    await suite.assert_idle()
    after = [await suite.metric(*name) for name in names]
    computed_east, computed_west, published, pulled = (a - b for a, b in zip(after, before, strict=True))
    assert (computed_east, computed_west) == (18, 0)  # 1,160 tokens; the rest is in no full block
    assert published == 18 * LAYERS
    assert pulled == 18 * LAYERS


async def test_streaming_gives_the_same_text_and_usage(suite: Suite) -> None:
    prompt = "The three primary colours are"
    whole = await suite.complete(prompt, 20)
    body = {
        "prompt": prompt,
        "max_tokens": 20,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with aiohttp.ClientSession() as session, session.post(f"{suite.url}/v1/completions", json=body) as response:
        lines = (await response.text()).splitlines()
    assert lines[-2] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(c["choices"][0]["text"] for c in chunks if c["choices"]) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 20


async def test_chat_works_out_of_the_box(suite: Suite) -> None:
    body = {
        "messages": [{"role": "user", "content": "What is the capital of France? Answer in one word."}],
        "max_tokens": 12,
        "temperature": 0,
    }
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{suite.url}/v1/chat/completions", json=body) as response,
    ):
        answer = await response.json()
    assert response.status == 200
    assert "Paris" in answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.6, 2.0])
async def test_a_client_that_vanishes_leaves_nothing_behind(suite: Suite, after_s: float) -> None:
    prompt = fresh((await suite.tokenize(real_text(12_000, skip=120_000)))[:2500])
    task = asyncio.create_task(suite.complete(prompt, 400))
    await asyncio.sleep(after_s)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await suite.assert_idle()
    assert (await suite.complete("Hello", 2))["usage"]["completion_tokens"] == 2
