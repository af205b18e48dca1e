"""A collector of traces: OTLP's gRPC service in this process, which keeps what it is sent, or never answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from tests.support.waiting import LIMIT_S, eventually


@dataclass(frozen=True)
class CollectedSpan:
    """A span as it arrived. Ids are hexadecimal, times in seconds since 1970."""

    service: str  # worker or gateway: `service.instance.id`
    name: str
    trace_id: str
    span_id: str
    parent_id: str  # empty: it has none
    kind: int
    began_s: float
    ended_s: float
    is_error: bool
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]  # trace and span

    @property
    def duration_s(self) -> float:
        return self.ended_s - self.began_s


@dataclass
class Collector(TraceServiceServicer):
    """Keeps all spans; while `is_hung`, calls are taken and never answered."""

    url: str = ""
    is_hung: bool = False
    num_calls: int = 0
    spans: list[CollectedSpan] = field(default_factory=list)

    async def Export(self, request: Any, context: Any) -> Any:
        self.num_calls += 1
        if self.is_hung:
            await asyncio.Event().wait()
        for group in request.resource_spans:
            service = _values(group.resource.attributes)["service.instance.id"]
            self.spans += [_collected(service, span) for scope in group.scope_spans for span in scope.spans]
        return messages.ExportTraceServiceResponse()

    def of_request(self, request_id: str) -> list[CollectedSpan]:
        """Return all spans of the trace in which a request was served, in the order of their beginnings."""
        roots = [span for span in self.spans if span.attributes.get("gen_ai.request.id") == request_id]
        trace_ids = {span.trace_id for span in roots}
        return sorted((s for s in self.spans if s.trace_id in trace_ids), key=lambda span: span.began_s)

    async def has(self, request_id: str, *names: str) -> list[CollectedSpan]:
        """Wait until a request's trace has spans of all these names; return the trace."""

        async def are_there() -> bool:
            return {span.name for span in self.of_request(request_id)}.issuperset(names)

        await eventually(are_there, LIMIT_S)
        return self.of_request(request_id)


@asynccontextmanager
async def collecting(*, is_hung: bool = False) -> AsyncIterator[Collector]:
    """Serve a collector on a free port."""
    collector, server = Collector(is_hung=is_hung), grpc.aio.server()
    add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(None)


def drawn(spans: list[CollectedSpan]) -> str:
    """Return a trace as a tree, a span a line: milliseconds since the first one's beginning, and how many it took."""
    known = {span.span_id for span in spans}
    lines: list[str] = []

    def draw(parent_id: str | None, depth: int) -> None:
        for span in spans:
            is_child = span.parent_id == parent_id if parent_id else span.parent_id not in known
            if is_child:
                at_ms, took_ms = 1e3 * (span.began_s - spans[0].began_s), 1e3 * span.duration_s
                name = "  " * depth + span.name
                lines.append(f"{at_ms:9.1f} {took_ms:9.1f} ms  {name:<42} {span.service}")
                draw(span.span_id, depth + 1)

    draw(None, 0)
    return "\n".join(lines)


def _collected(service: str, span: Any) -> CollectedSpan:
    return CollectedSpan(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=span.kind,
        began_s=span.start_time_unix_nano / 1e9,
        ended_s=span.end_time_unix_nano / 1e9,
        is_error=span.status.code == 2,
        attributes=_values(span.attributes),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}
