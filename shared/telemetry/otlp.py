"""Spans by OpenTelemetry's SDK, sent as OTLP by a thread of its own. No other module knows OpenTelemetry."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_BSP_MAX_QUEUE_SIZE
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.config import ServiceSettings
from shared.log import get_logger
from shared.telemetry.spans import NO_SPAN, NOTHING, Attributes, Carrier, Kind, TraceSpan

log = get_logger()

MAX_QUEUED = 2048
"""Spans that wait for the collector at most, where OTEL_BSP_MAX_QUEUE_SIZE says nothing else."""

LINKED_PAUSE_S = 0.2
"""Between two events that get a span: a pool that stores much tells of it many times a second."""

Outcome = Literal["exported", "failed", "dropped"]
Count = Callable[[Outcome, int], None]

_PROPAGATOR = TraceContextTextMapPropagator()
_KINDS: dict[Kind, trace.SpanKind] = {
    "internal": trace.SpanKind.INTERNAL,
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
    "producer": trace.SpanKind.PRODUCER,
    "consumer": trace.SpanKind.CONSUMER,
}


class OtlpTracer:
    """Makes spans. They are sampled as OTEL_TRACES_SAMPLER says: all, unless the client's trace is not recorded."""

    def __init__(self, provider: TracerProvider, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` times the pauses between linked spans."""
        self._provider = provider
        self._tracer = provider.get_tracer("prfaas")
        self._clock = clock
        self._next_linked_at = 0.0

    @classmethod
    def open(cls, settings: ServiceSettings, count: Count) -> Self:
        """Send spans to the collector of the settings; `count` is told what became of them, by any thread."""
        provider = TracerProvider(resource=_resource(settings), shutdown_on_exit=False)
        provider.add_span_processor(CountedBatches(OTLPSpanExporter(endpoint=settings.traces), count))
        return cls(provider)

    def close(self, limit_s: float) -> bool:
        """Send what waits and end the threads; False when that takes longer than `limit_s`, and spans are lost."""
        closing = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        closing.start()
        closing.join(limit_s)
        return not closing.is_alive()

    def root(self, name: str, kind: Kind, carrier: Carrier, attributes: Attributes, *, may_begin: bool) -> TraceSpan:
        """See `Tracer.root`."""
        context = _PROPAGATOR.extract(dict(carrier))
        if not (may_begin or trace.get_current_span(context).get_span_context().is_valid):
            return NO_SPAN
        kept = _kept(attributes)
        return OtlpSpan(self._tracer, self._tracer.start_span(name, context, _KINDS[kind], kept))

    def linked(self, name: str, kind: Kind, carrier: Carrier, attributes: Attributes) -> TraceSpan:
        """See `Tracer.linked`."""
        other = trace.get_current_span(_PROPAGATOR.extract(dict(carrier))).get_span_context()
        now = self._clock()
        if not (other.is_valid and other.trace_flags.sampled) or now < self._next_linked_at:
            return NO_SPAN
        self._next_linked_at = now + LINKED_PAUSE_S
        # No parent, whatever the context: the event's trace may be over, and a reader's would not end.
        root = trace.set_span_in_context(trace.INVALID_SPAN)
        links = [trace.Link(other)]
        return OtlpSpan(self._tracer, self._tracer.start_span(name, root, _KINDS[kind], _kept(attributes), links))


class OtlpSpan(TraceSpan):
    """A span of the SDK's. One that is not sampled records nothing, and tells peers so."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, ahead_ns: int | None = None) -> None:
        """`ahead_ns`: of a span that has ended already, as `_ahead_ns`."""
        self._tracer = tracer
        self._span = span
        self._has_failed = False
        # What the clock on the wall is ahead of the monotonic one: the same for all phases of a span.
        self._ahead_ns = time.time_ns() - time.monotonic_ns() if ahead_ns is None else ahead_ns
        self.is_recording = span.is_recording() or ahead_ns is not None
        self.trace_id = trace.format_trace_id(span.get_span_context().trace_id) if self.is_recording else None

    @cached_property
    def carrier(self) -> Carrier:  # type: ignore[override]
        headers: dict[str, str] = {}
        _PROPAGATOR.inject(headers, self._context)
        return tuple(headers.items())

    @cached_property
    def _context(self) -> Context:
        return trace.set_span_in_context(self._span)

    def begin(self, name: str, kind: Kind = "internal", attributes: Attributes = NOTHING) -> TraceSpan:
        return OtlpSpan(self._tracer, self._tracer.start_span(name, self._context, _KINDS[kind], _kept(attributes)))

    def past(self, name: str, began_at: float, ended_at: float, attributes: Attributes = NOTHING) -> TraceSpan:
        if not self.is_recording:
            return self
        began_ns, ended_ns = self._unix_ns(began_at), self._unix_ns(max(began_at, ended_at))
        span = self._tracer.start_span(name, self._context, attributes=_kept(attributes), start_time=began_ns)
        span.end(ended_ns)
        return OtlpSpan(self._tracer, span, self._ahead_ns)

    def set(self, attributes: Attributes) -> None:
        if self._span.is_recording():
            self._span.set_attributes(_kept(attributes))

    def failed(self, error: str) -> None:
        if not self._has_failed and self._span.is_recording():
            self._has_failed = True
            self._span.set_attribute("error.type", error)
            self._span.set_status(trace.StatusCode.ERROR, error)

    def end(self) -> None:
        if self._span.is_recording():
            self._span.end()

    def _unix_ns(self, at: float) -> int:
        return int(at * 1e9) + self._ahead_ns


class CountedBatches(BatchSpanProcessor):
    """A bounded queue that a thread empties into the collector. Nobody who ends a span waits: the oldest goes."""

    def __init__(self, exporter: SpanExporter, count: Count) -> None:
        self._max_queued = int(os.environ.get(OTEL_BSP_MAX_QUEUE_SIZE, MAX_QUEUED))
        self._count = count
        self._lock = threading.Lock()
        self._num_queued = 0
        self._is_failing = False
        super().__init__(_Told(exporter, self._leaving, self._left), self._max_queued)

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            with self._lock:
                is_full = self._num_queued >= self._max_queued
                self._num_queued += not is_full
            if is_full:
                self._count("dropped", 1)
        super().on_end(span)

    def _leaving(self, num_spans: int) -> None:
        with self._lock:
            self._num_queued -= num_spans

    def _left(self, num_spans: int, is_taken: bool) -> None:
        self._count("exported" if is_taken else "failed", num_spans)
        if self._is_failing == is_taken:
            self._is_failing = not is_taken
            (log.info if is_taken else log.warning)("collector_changed", takes_spans=is_taken)


class _Told(SpanExporter):
    """An exporter whose batches are told of before and after."""

    def __init__(
        self, exporter: SpanExporter, leaving: Callable[[int], None], left: Callable[[int, bool], None]
    ) -> None:
        self._exporter = exporter
        self._leaving = leaving
        self._left = left

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._leaving(len(spans))
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._left(len(spans), result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _resource(settings: ServiceSettings) -> Resource:
    """Return what is true of all spans of this process; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go first."""
    ours = {
        "service.namespace": "prfaas",
        "service.name": f"prfaas-{settings.service}",
        "service.instance.id": settings.worker_id,
        "prfaas.dc": settings.dc,
    }
    given = OTELResourceDetector().detect().attributes
    return Resource.create({name: value for name, value in ours.items() if name not in given})


def _kept(attributes: Attributes) -> dict[str, str | bool | int | float]:
    return {name: value for name, value in attributes.items() if value is not None}
