"""How requests come in: admitted while there is room, their bodies read and understood off the event loop."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TypeVar

from aiohttp import web

from services.gateway.api.parsing import UnknownFields, parse
from services.gateway.api.schema import Body
from services.gateway.metrics import GatewayMetrics
from services.gateway.settings import GatewaySettings
from shared.errors import BodyTooLarge, Overloaded
from shared.service.lifecycle import InFlight

B = TypeVar("B", bound=Body)
T = TypeVar("T")


INLINE_BODY_BYTES = 1024
"""Bodies up to this size are worked on at once: that takes a third of a millisecond at most, and a thread's turn and
its fight for the interpreter a tenth, of each request."""


class Admission:
    """What all routes share. `executor` takes parsing, templates, tokenising and hashing of all but short bodies."""

    def __init__(
        self, settings: GatewaySettings, inflight: InFlight, metrics: GatewayMetrics, executor: Executor
    ) -> None:
        self._settings = settings
        self._inflight = inflight
        self._metrics = metrics
        self._executor = executor
        self._unknown_fields = UnknownFields()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count the body as a running request. Raises `Draining` and `Overloaded`."""
        if self._inflight.count >= self._settings.max_requests:
            raise Overloaded(f"{self._settings.max_requests} requests are running already")
        with self._inflight.track(), self._metrics.running.track_inprogress():
            yield

    async def body(self, request: web.Request, schema: type[B], work: Callable[[B], T]) -> T:
        """Return what `work` makes of the body. Raises `BodyTooLarge`, `BadRequest`, and what `work` raises."""
        data = await self._read(request)

        def run() -> T:
            body = parse(schema, data)
            self._unknown_fields.note(body)
            return work(body)

        if len(data) <= INLINE_BODY_BYTES:
            return run()
        return await asyncio.get_running_loop().run_in_executor(self._executor, run)

    async def _read(self, request: web.Request) -> bytes:
        """Refuse a body that is too large before reading it, where its length is announced."""
        limit_bytes = self._settings.max_body_bytes
        if (request.content_length or 0) > limit_bytes:
            raise BodyTooLarge(f"the body has {request.content_length} bytes; this server takes {limit_bytes}")
        return await request.read()
