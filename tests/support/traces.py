"""Traces kept in this process by OpenTelemetry's own exporter for tests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased

from shared.telemetry.otlp import OtlpTracer
from shared.telemetry.tracing import switched_on

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""The context of a client's span that is sampled."""


class KeptSpans:
    """The spans that have ended, by name; those of one name in the order of their ends."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.exporter.get_finished_spans()]

    def one(self, name: str) -> ReadableSpan:
        (span,) = (span for span in self.exporter.get_finished_spans() if span.name == name)
        return span

    def children(self, name: str) -> list[str]:
        parent = self.one(name).context.span_id
        return [
            span.name for span in self.exporter.get_finished_spans() if span.parent and span.parent.span_id == parent
        ]


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


@contextmanager
def kept_spans(*, samples: bool = True, clock: Callable[[], float] | None = None) -> Iterator[KeptSpans]:
    """Trace what happens in this process; roots without a parent are sampled or not."""
    kept = KeptSpans()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_ON if samples else ALWAYS_OFF), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept.exporter))
    with switched_on(OtlpTracer(provider) if clock is None else OtlpTracer(provider, clock)):
        yield kept
    provider.shutdown()
