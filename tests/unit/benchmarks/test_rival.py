"""The rival's table and its load: what is asked, and what becomes of the answers."""

import asyncio

import aiohttp
import pytest
from aiohttp import web

from benchmarks.prompts import BenchPrompt
from benchmarks.streaming.accounting import accounted
from benchmarks.streaming.asking import WanAnswer
from benchmarks.streaming.rival import (
    RIVAL_RATE,
    RIVAL_TOKEN_BYTES,
    Cell,
    lengths_of,
    load_row,
    needed_bytes,
    rate_of,
    table_rows,
)
from shared.kv.layout import KvLayout, LayerSpec

DENSE = KvLayout((LayerSpec(None, 1, 64),) * 2, "bfloat16")
HYBRID = KvLayout((LayerSpec(None, 1, 64), LayerSpec(128, 1, 64)), "bfloat16")


def cell(way: str, ttfts_s: list[float], num_tokens: int = 4000) -> Cell:
    return Cell(way, 0.0415, num_tokens, 1e9, [WanAnswer(ttft_s, 10_000_000, 0) for ttft_s in ttfts_s])


def test_a_link_carries_a_prompt_as_long_as_the_rivals() -> None:
    num_tokens = 64 * 100 + 1
    seconds = needed_bytes(DENSE, num_tokens) / rate_of(DENSE, num_tokens)
    assert seconds == pytest.approx(num_tokens * RIVAL_TOKEN_BYTES / RIVAL_RATE)


def test_a_windows_layers_are_needed_at_the_end_only() -> None:
    assert needed_bytes(DENSE, 6401) == 100 * DENSE.block_bytes
    assert needed_bytes(HYBRID, 6401) == 100 * HYBRID.entry_bytes(0) + 2 * HYBRID.entry_bytes(1)


def test_what_is_added_is_beyond_the_control() -> None:
    cells = [cell("streamed", [2.1, 2.0, 9.0]), cell("stored", [3.0]), cell("pulled", [0.3]), cell("control", [1.9])]
    rows, checks = table_rows(2.5, cells)
    added = {row["way"]: row["added_ms"] for row in rows}
    assert added == {"streamed": 200, "stored": 1100, "pulled": None, "control": None}
    assert [row["cold_s"] for row in rows] == [2.5, None, None, None]
    assert [row["rival_s"] for row in rows] == [0.139, 0.139, 0.139, None]
    assert [(check.value, check.met) for check in checks] == [(0.7, True), (0.3, False)]


def test_lengths_are_clipped_to_the_context_and_the_same_each_time() -> None:
    lengths = lengths_of(400, 8000)
    assert lengths == lengths_of(400, 8000)
    assert min(lengths) >= 16
    assert max(lengths) == 8000
    assert 800 < sorted(lengths)[200] < 1500  # exp(7) is 1,097


@pytest.fixture
async def gateway() -> web.Application:
    """Answers as told by the prompt: with a token, with an error, with nothing, or never."""

    async def complete(request: web.Request) -> web.StreamResponse:
        what = (await request.json())["prompt"][0]
        if what == 3:
            await asyncio.Event().wait()
        if what == 1:
            return web.Response(status=503, text="no worker")
        response = web.StreamResponse()
        await response.prepare(request)
        if what == 0:
            await response.write(b'data: {"choices": [{"text": "a", "finish_reason": null}]}\n\n')
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    return app


async def test_every_request_of_a_load_is_accounted_for(gateway: web.Application) -> None:
    runner = web.AppRunner(gateway, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = runner.addresses[0]
    try:
        async with aiohttp.ClientSession() as session:
            prompts = [BenchPrompt([what], 1) for what in (0, 1, 2, 3, 0, 1)]
            url = f"http://127.0.0.1:{address[1]}"
            account = await accounted(session, url, "m", prompts, at_once=2, limit_s=1.0)
    finally:
        await runner.cleanup()
    assert len(account.ttfts_s) == 2
    assert account.failed == {
        "HTTP 503: no worker": 2,
        "the stream ended without a token": 1,
        "no answer within 1 s": 1,
    }
    assert account.num_unaccounted == 0
    row, check = load_row("streamed", 0.002, account)
    assert (row["answered"], row["failed"], row["unaccounted"]) == (2, 4, 0)
    assert (check.value, check.met) == (4, False)
