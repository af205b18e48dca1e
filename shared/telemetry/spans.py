"""What the suite sees of a trace: the span of the work in hand. Outside of traces it is one that keeps nothing."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from shared.errors import PrfaasError
from shared.log import bound_trace

TRACE_HEADERS = ("traceparent", "tracestate")
"""Names under which HTTP requests, gRPC calls and Kafka events carry a span's context (W3C Trace Context)."""

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Carrier = tuple[tuple[str, str], ...]
"""Pairs of `TRACE_HEADERS` and their values; empty: no trace."""

Attributes = Mapping[str, str | bool | int | float | None]
"""Facts by name; those that are None are left out."""

NOTHING: Attributes = {}


class TraceSpan:
    """A piece of traced work. This class is the span of work that nobody traces: it keeps nothing.

    Times are those of the monotonic clock. What is called after `end` changes nothing.
    """

    is_recording: bool = False
    trace_id: str | None = None  # 32 hexadecimal digits; None where nothing is recorded
    carrier: Carrier = ()  # for peers, so that they continue the trace, or know that it is not recorded

    def begin(self, name: str, kind: Kind = "internal", attributes: Attributes = NOTHING) -> "TraceSpan":
        """Return a span inside this one, which its caller ends."""
        return self

    def past(self, name: str, began_at: float, ended_at: float, attributes: Attributes = NOTHING) -> "TraceSpan":
        """Record a phase that is over as a span inside this one, and return it."""
        return self

    def set(self, attributes: Attributes) -> None:
        """Add facts."""

    def failed(self, error: str) -> None:
        """Note the code of the error that ends the work; the first one counts."""

    def end(self) -> None:
        """Note that the work is over; idempotent."""


NO_SPAN = TraceSpan()

_current: ContextVar[TraceSpan] = ContextVar("span", default=NO_SPAN)


def current_span() -> TraceSpan:
    """Return the span of the work in hand."""
    return _current.get()


@contextmanager
def entered(span: TraceSpan) -> Iterator[None]:
    """Make `span` the current one of the body, whose log lines carry its trace's id. Ends nothing."""
    before = _current.get()
    _current.set(span)
    try:
        with bound_trace(span.trace_id):
            yield
    finally:
        _current.set(before)  # not by a token: a generator may be closed in another context


@contextmanager
def running(span: TraceSpan) -> Iterator[TraceSpan]:
    """Enter `span`, note what the body raises, and end it."""
    try:
        with entered(span):
            yield span
    except PrfaasError as error:
        span.failed(error.code)
        raise
    except asyncio.CancelledError:
        span.set({"prfaas.cancelled": True})
        raise
    except GeneratorExit:  # its reader has enough
        raise
    except BaseException as error:
        span.failed(type(error).__name__)
        raise
    finally:
        span.end()


@contextmanager
def traced(name: str, kind: Kind = "internal", attributes: Attributes = NOTHING) -> Iterator[TraceSpan]:
    """Trace the body as a part of the work in hand; where nobody traces that, nothing is done."""
    parent = _current.get()
    if parent is NO_SPAN:
        yield NO_SPAN
    else:
        with running(parent.begin(name, kind, attributes)) as span:
            yield span


def named(**values: str | bool | int | float | None) -> Attributes:
    """Return facts of the suite's own, in its namespace: `num_blocks` is `prfaas.num_blocks`."""
    return {f"prfaas.{name}": value for name, value in values.items()}
