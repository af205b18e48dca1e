"""The switch of tracing, and where traces begin: at the gateway, at a call that brings one, at an event of one."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import Protocol

from shared.config import ServiceSettings
from shared.errors import SettingsError
from shared.log import get_logger
from shared.metrics import Metrics
from shared.telemetry.spans import NO_SPAN, NOTHING, TRACE_HEADERS, Attributes, Carrier, Kind, TraceSpan, running

log = get_logger()

MAX_HEADER_CHARS = 512
"""Of a `tracestate` that is passed on: calls with more metadata than gRPC takes would fail."""

FLUSH_S = 2.0
"""How long a process that ends waits for the collector to take its last spans."""


class Tracer(Protocol):
    """Begins traces."""

    def root(self, name: str, kind: Kind, carrier: Carrier, attributes: Attributes, *, may_begin: bool) -> TraceSpan:
        """Return a span that continues what a peer has sent; without that, one of a new trace or `NO_SPAN`."""
        ...

    def linked(self, name: str, kind: Kind, carrier: Carrier, attributes: Attributes) -> TraceSpan:
        """Return a span of a new trace that refers to another's; `NO_SPAN` when there were many of late."""
        ...


_tracer: Tracer | None = None
"""One for each process, as for logs: whatever is traced finds its parent in its context, not in an argument."""


@contextmanager
def switched_on(tracer: Tracer) -> Iterator[None]:
    """Have everything in this process traced by `tracer` while the body runs."""
    global _tracer  # noqa: PLW0603 - see there
    before, _tracer = _tracer, tracer
    try:
        yield
    finally:
        _tracer = before


@asynccontextmanager
async def tracing(settings: ServiceSettings, metrics: Metrics) -> AsyncIterator[None]:
    """Trace as the settings say. At the end spans are sent on for `FLUSH_S` at most. Raises `SettingsError`."""
    spans = metrics.counter(
        "trace_spans",
        "Spans, by what became of them: exported, failed (the collector did not take them), dropped (too many)",
        ("outcome",),
    )
    for outcome in ("exported", "failed", "dropped"):
        spans.labels(outcome)
    if not settings.traces:
        yield
        return
    try:
        # Only here: it takes a while, and a process without traces needs no such package.
        from shared.telemetry.otlp import OtlpTracer
    except ImportError as error:
        raise SettingsError(f"PRFAAS_TRACES: needs the packages of prfaas[tracing] ({error})") from None
    tracer = OtlpTracer.open(settings, lambda outcome, count: spans.labels(outcome).inc(count))
    try:
        with switched_on(tracer):
            yield
    finally:
        if not await asyncio.to_thread(tracer.close, FLUSH_S):
            log.warning("spans_not_flushed", within_s=FLUSH_S)


def begun(name: str, headers: Iterable[tuple[str, str]], attributes: Attributes) -> AbstractContextManager[TraceSpan]:
    """Trace the body as the serving of a client, whose own trace it continues if the headers bring one."""
    if _tracer is None:
        return nullcontext(NO_SPAN)
    return running(_tracer.root(name, "server", carrier_of(headers), attributes, may_begin=True))


def continued(
    name: str, headers: Iterable[tuple[str, str | bytes]], attributes: Attributes
) -> AbstractContextManager[TraceSpan]:
    """Trace the body as the serving of a peer, if it is in a trace: calls of loops and probes are in none."""
    if _tracer is None or not (carrier := carrier_of(headers)):
        return nullcontext(NO_SPAN)
    return running(_tracer.root(name, "server", carrier, attributes, may_begin=False))


def linked(
    name: str, headers: Iterable[tuple[str, str | bytes]], attributes: Attributes = NOTHING
) -> AbstractContextManager[TraceSpan]:
    """Trace the body as the handling of an event, in a trace of its own that refers to the event's, if it has one."""
    if _tracer is None or not (carrier := carrier_of(headers)):
        return nullcontext(NO_SPAN)
    return running(_tracer.linked(name, "consumer", carrier, attributes))


def carrier_of(headers: Iterable[tuple[str, str | bytes]]) -> Carrier:
    """Return the context of a span among headers, metadata or the like."""
    found = ((name, _text(value)) for name, value in headers if name in TRACE_HEADERS)
    return tuple((name, value) for name, value in found if len(value) <= MAX_HEADER_CHARS)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("ascii", "replace")
