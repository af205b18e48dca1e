"""The switch, where traces begin and go on, and what peers, logs and events are told of them."""

import asyncio
import subprocess
import sys
import time

import pytest
import structlog

from shared.config import ServiceSettings, load
from shared.errors import BadRequest, SettingsError
from shared.metrics import Metrics
from shared.telemetry.spans import NO_SPAN, current_span, entered, named, traced
from shared.telemetry.tracing import begun, continued, linked, tracing
from tests.support.collector import collecting
from tests.support.traces import PARENT, kept_spans, seconds

TRACE_ID, SPAN_ID = PARENT.split("-")[1:3]
HEADERS = [("traceparent", PARENT), ("tracestate", "a=1"), ("other", "x")]


def test_without_the_switch_nothing_is_traced_and_nothing_imported() -> None:
    with begun("a", HEADERS, {}) as span, continued("b", HEADERS, {}), traced("c") as inner:
        assert span is inner is current_span() is NO_SPAN
        assert span.carrier == ()
    code = (
        "import sys, services.gateway.app, services.cachepool.app, services.prefill.app, services.decode.app; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_a_request_continues_its_client_s_trace_and_calls_continue_it() -> None:
    with kept_spans() as kept:
        with begun("request", HEADERS, {"a": 1, "b": None}) as request, traced("attempt") as attempt:
            carrier = attempt.carrier
            assert dict(carrier)["tracestate"] == "a=1"
        with continued("call", carrier, {}) as call, traced("inside"):
            assert call.trace_id == request.trace_id == TRACE_ID
        assert current_span() is NO_SPAN
    root = kept.one("request")
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == SPAN_ID
    assert root.attributes == {"a": 1}
    assert kept.children("request") == ["attempt"]
    assert kept.children("attempt") == ["call"]
    assert kept.children("call") == ["inside"]


def test_a_long_tracestate_is_not_passed_on() -> None:
    with kept_spans(), begun("request", [HEADERS[0], ("tracestate", "a=" + 511 * "1")], {}) as span:
        assert span.trace_id == TRACE_ID
        assert "tracestate" not in dict(span.carrier)


def test_a_request_without_a_trace_begins_one_and_a_call_does_not() -> None:
    with kept_spans() as kept:
        with begun("request", [("traceparent", "nonsense")], {}) as span:
            assert span.trace_id is not None
        for headers in ([], [("traceparent", "nonsense")]):
            with continued("call", headers, {}) as call:
                assert call is NO_SPAN
    assert kept.names == ["request"]
    assert kept.one("request").parent is None


def test_peers_are_told_that_a_trace_is_not_recorded() -> None:
    with kept_spans(samples=False) as kept, begun("request", [], {}) as span:
        assert not span.is_recording
        assert span.trace_id is None
        flags = int(dict(span.carrier)["traceparent"].rpartition("-")[2], 16)
        assert not flags & 1
        with continued("call", span.carrier, {}) as call:
            assert not call.is_recording
            assert call.past("phase", 0.0, 1.0) is call
    assert kept.names == []


def test_phases_that_are_over_lie_where_they_were() -> None:
    with kept_spans() as kept:
        began_at, began_ns = time.monotonic(), time.time_ns()
        with begun("request", [], {}) as span:
            phase = span.past("phase", began_at - 2.0, began_at - 0.5, named(num_tokens=3))
            phase.past("chunk", began_at - 2.0, began_at - 1.0)
            span.past("late", began_at, began_at - 1.0)  # a clock that was read in another order
    assert seconds(kept.one("phase")) == pytest.approx(1.5)
    assert (kept.one("phase").start_time or 0) == pytest.approx(began_ns - 2_000_000_000, abs=1e8)
    assert kept.one("phase").attributes == {"prfaas.num_tokens": 3}
    assert kept.children("phase") == ["chunk"]
    assert seconds(kept.one("late")) == 0.0


async def test_what_ends_work_is_noted() -> None:
    with kept_spans() as kept, begun("request", [], {}):
        with pytest.raises(BadRequest), traced("refused"):
            raise BadRequest("no")
        with pytest.raises(ZeroDivisionError), traced("crashed"):
            raise ZeroDivisionError
        with pytest.raises(asyncio.CancelledError), traced("cancelled"):
            raise asyncio.CancelledError
        with traced("failed once") as span:
            span.failed("first")
            span.failed("second")
    found = {name: kept.one(name) for name in ("refused", "crashed", "cancelled", "failed once")}
    errors = {name: (span.attributes or {}).get("error.type") for name, span in found.items()}
    assert errors == {
        "refused": BadRequest.code,
        "crashed": "ZeroDivisionError",
        "cancelled": None,
        "failed once": "first",
    }
    assert [name for name, span in found.items() if span.status.is_ok is False] == ["refused", "crashed", "failed once"]
    assert (found["cancelled"].attributes or {})["prfaas.cancelled"] is True


def test_an_event_s_span_is_a_link_and_few_get_one() -> None:
    now = 100.0
    with kept_spans(clock=lambda: now) as kept:
        headers = [("traceparent", PARENT.encode())]
        for at in (100.0, 100.1, 100.3):
            now = at
            with begun("other", [], {}), linked("event", headers, {}):
                pass
        with linked("event", [], {}) as span:
            assert span is NO_SPAN
    events = [span for span in kept.exporter.get_finished_spans() if span.name == "event"]
    assert len(events) == 2
    for event in events:
        assert event.parent is None
        assert [f"{link.context.trace_id:032x}" for link in event.links] == [TRACE_ID]


def test_log_lines_carry_the_trace() -> None:
    with kept_spans(), begun("request", HEADERS, {}) as span:
        assert structlog.contextvars.get_contextvars()["trace_id"] == TRACE_ID
        with entered(NO_SPAN):
            assert current_span() is NO_SPAN
        with entered(span):
            pass
        assert structlog.contextvars.get_contextvars()["trace_id"] == TRACE_ID
    assert "trace_id" not in structlog.contextvars.get_contextvars()


@pytest.mark.parametrize("address", ["localhost:4317", "http://", "ftp://host:1", "http://host:4318/v1/traces"])
def test_a_wrong_address_is_a_wrong_setting(address: str) -> None:
    with pytest.raises(SettingsError, match="PRFAAS_TRACES"):
        load(ServiceSettings, {"PRFAAS_TRACES": address})


async def test_without_the_package_the_switch_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shared.telemetry.otlp", None)
    with pytest.raises(SettingsError, match=r"prfaas\[tracing\]"):
        async with tracing(load(ServiceSettings, {"PRFAAS_TRACES": "http://127.0.0.1:1"}), Metrics()):
            pass


async def test_spans_reach_the_collector_before_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    metrics = Metrics()
    async with collecting() as collector:
        async with tracing(load(ServiceSettings, {"PRFAAS_TRACES": collector.url}), metrics):
            with begun("request", [], {}):
                pass
        assert [(span.service, span.name) for span in collector.spans] == [("service-local", "request")]
    assert spans_of(metrics) == {"exported": 1, "failed": 0, "dropped": 0}


async def test_a_hung_collector_costs_spans_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    monkeypatch.setattr("shared.telemetry.tracing.FLUSH_S", 0.2)
    metrics = Metrics()
    async with collecting(is_hung=True) as collector:
        async with tracing(load(ServiceSettings, {"PRFAAS_TRACES": collector.url}), metrics):
            for _ in range(100):
                with begun("request", [], {}):
                    pass
            began_at = time.monotonic()
        assert time.monotonic() - began_at < 10.0, "the end waited for the collector"
    assert 100 - 16 - 4 * 4 <= spans_of(metrics)["dropped"] <= 100 - 16


async def test_a_collector_that_is_away_costs_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    metrics = Metrics()
    async with tracing(load(ServiceSettings, {"PRFAAS_TRACES": "http://127.0.0.1:9"}), metrics):
        with begun("request", [], {}):
            pass
    assert spans_of(metrics)["exported"] == 0


def spans_of(metrics: Metrics) -> dict[str, float]:
    samples = [
        s for family in metrics.registry.collect() for s in family.samples if s.name == "prfaas:trace_spans_total"
    ]
    return {sample.labels["outcome"]: sample.value for sample in samples}
