"""One trace through real processes: spans of all services with the right parents, and no harm by a hung collector."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.checkpoints import served
from tests.support.collector import CollectedSpan, Collector, collecting, drawn
from tests.support.suite import Suite, running_suite
from tests.support.texts import real_text
from tests.support.traces import PARENT

pytestmark = [pytest.mark.suite, pytest.mark.timeout(300)]

SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100"}


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as found:
        yield found


async def ask(suite: Suite, request_id: str, max_tokens: int, **headers: str) -> None:
    body = {"prompt": f"{request_id} {real_text(3000)}", "max_tokens": max_tokens, "ignore_eos": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{suite.url}/v1/completions", json=body, headers={"X-Request-Id": request_id, **headers}
        ) as response,
    ):
        assert response.status == 200, await response.text()
        assert (await response.json())["usage"]["completion_tokens"] == max_tokens


async def test_a_remote_prefill_is_one_trace(collector: Collector, tmp_path: Path) -> None:
    # No patience: a machine under load would compute at decode what the trace shall show.
    with running_suite(tmp_path, **served(tmp_path), PRFAAS_TRACES=collector.url, **SOON) as suite:
        await suite.ready()
        await ask(suite, "warm", 2)
        await ask(suite, "follow-me", 24, traceparent=PARENT)
        calls = [f"prfaas.v1.{name}" for name in ("Prefill/Prefill", "Decode/Generate", "CachePool/Fetch")]
        spans = await collector.has("follow-me", "pull", "publish", "generate", *calls)
        picture = drawn(spans)
        by_id = {span.span_id: span for span in spans}
        assert {span.trace_id for span in spans} == {PARENT.split("-")[1]}

        root, *others = [span for span in spans if span.parent_id not in by_id]
        assert (root.name, root.service, root.parent_id) == ("POST /v1/completions", "gateway", PARENT.split("-")[2])
        assert not others, picture
        assert root.attributes["http.response.status_code"] == 200
        assert root.attributes["gen_ai.usage.output_tokens"] == 24
        assert root.attributes["prfaas.request_id"] == "follow-me"

        def ways(name: str) -> set[tuple[str, ...]]:
            return {way_of(span, by_id) for span in spans if span.name == name}

        gateway = ("POST /v1/completions", "attempt")
        prefill, decode, fetch = calls
        assert ways(prefill) == {(*gateway, "prefill", prefill)}, picture
        assert ways(decode) == {(*gateway, decode)}, picture
        assert (*gateway, decode, fetch, "pull", fetch) in ways(fetch), picture
        publish = "prfaas.v1.CachePool/Publish"
        assert (*gateway, "prefill", prefill, publish) in ways(publish), picture
        assert ways("chunk") <= {(*gateway, "prefill", prefill, "compute", "chunk")}, picture
        for name in ("wait for turn", "reuse", "compute", "publish"):
            assert ways(name) == {(*gateway, "prefill", prefill, name)}, picture
        for name in ("wait for blocks", "tail", "generate"):
            assert ways(name) == {(*gateway, decode, name)}, picture
        for name in ("read body", "tokenise", "plan", "queue", "attempt"):
            assert ways(name) == {("POST /v1/completions", name)}, picture
        assert {span.service for span in spans} >= {"gateway", "decode-west", "cachepool-east", "cachepool-west"}

        # No span for a token: the answer's length changes their number by its blocks only.
        assert len(spans) < 40, picture
        (generate,) = (span for span in spans if span.name == "generate")
        assert generate.attributes["prfaas.num_tokens"] == 24
        for span in spans:
            parent = by_id.get(span.parent_id, root)
            assert span.began_s >= parent.began_s - 0.05, picture  # clocks are read in other processes
            assert span.ended_s >= span.began_s
        for service in ("gateway", "decode-west", "cachepool-east"):
            events = {"gateway": "request_ended", "decode-west": "tail_computed", "cachepool-east": "publish_served"}
            line = await suite.logged(service, events[service], "follow-me")
            assert line["trace_id"] == root.trace_id
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{suite.url}/v1/requests/follow-me/timeline") as response,
        ):
            assert (await response.json())["trace_id"] == root.trace_id
        linked = [span for span in collector.spans if span.links]
        assert linked, "no placement tells whose blocks it is about"
        assert all(span.service == "gateway" and not span.parent_id for span in linked)


async def test_a_hung_collector_delays_no_answer(tmp_path: Path) -> None:
    few = {"OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4", "OTEL_EXPORTER_OTLP_TIMEOUT": "120"}
    async with collecting(is_hung=True) as collector:
        with running_suite(tmp_path, **served(tmp_path), PRFAAS_TRACES=collector.url, **SOON, **few) as suite:
            await suite.ready()
            for number in range(6):
                began_at = time.monotonic()
                await ask(suite, f"request-{number}", 2)
                assert time.monotonic() - began_at < 60.0, "an export takes 120 s here"
            assert collector.num_calls > 0
            assert await suite.metric("gateway", "trace_spans_total", outcome="dropped") > 0
            assert await suite.metric("gateway", "trace_spans_total", outcome="exported") == 0
            began_at = time.monotonic()
            codes = suite.stop()
            assert time.monotonic() - began_at < 60.0
            assert set(codes.values()) == {0}, codes


def way_of(span: CollectedSpan, by_id: dict[str, CollectedSpan]) -> tuple[str, ...]:
    """Return the names of a span and of those around it, from the outermost on."""
    parent = by_id.get(span.parent_id)
    return (span.name,) if parent is None else (*way_of(parent, by_id), span.name)
