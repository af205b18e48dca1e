"""How requests come in: counted while there is room, their bodies read and understood off the event loop."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TypeVar

from aiohttp import web

from services.gateway.admission.rate import EventRate
from services.gateway.api.bodies.body import Body
from services.gateway.api.bodies.parsing import UnknownFields, parse
from services.gateway.metrics import GatewayMetrics
from services.gateway.settings import GatewaySettings
from shared.errors import BodyTooLarge, Overloaded
from shared.service.lifecycle import InFlight

B = TypeVar("B", bound=Body)
T = TypeVar("T")

INLINE_BODY_BYTES, INLINE_CHARS = 8192, 1024
"""Bodies of this size are read at once, and if they have no more text than this, worked on at once too: that takes a
fraction of a millisecond, while a thread's turn and its fight for the interpreter take a tenth of a short request."""


class RequestIntake:
    """What all routes share. `executor` takes parsing, templates, tokenising and hashing of all but short bodies."""

    def __init__(
        self,
        settings: GatewaySettings,
        inflight: InFlight,
        metrics: GatewayMetrics,
        executor: Executor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._inflight = inflight
        self._metrics = metrics
        self._executor = executor
        self._clock = clock
        self._unknown_fields = UnknownFields(are_refused=settings.unknown_fields == "refuse")
        self._ends = EventRate()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count the body as a running request. Raises `Draining` and `Overloaded`."""
        if self._inflight.count >= self._settings.max_requests:
            self._metrics.rejected("requests")
            wait_s = self._ends.next_in_s(self._clock())
            raise Overloaded(f"{self._settings.max_requests} requests are running already", retry_after_s=wait_s)
        try:
            with self._inflight.track(), self._metrics.running.track_inprogress():
                yield
        finally:
            self._ends.note(self._clock())

    async def body(self, request: web.Request, schema: type[B], work: Callable[[B], T]) -> T:
        """Return what `work` makes of the body. Raises `BodyTooLarge`, `BadRequest`, and what `work` raises."""
        data = await self._read(request)
        loop = asyncio.get_running_loop()
        if len(data) > INLINE_BODY_BYTES:
            return await loop.run_in_executor(self._executor, lambda: work(self._parsed(schema, data)))
        body = self._parsed(schema, data)
        if body.num_chars > INLINE_CHARS:
            return await loop.run_in_executor(self._executor, work, body)
        return work(body)

    def _parsed(self, schema: type[B], data: bytes) -> B:
        body = parse(schema, data)
        self._unknown_fields.check(body)
        return body

    async def _read(self, request: web.Request) -> bytes:
        """Refuse a body that is too large before reading it, where its length is announced."""
        limit_bytes = self._settings.max_body_bytes
        if (request.content_length or 0) > limit_bytes:
            raise BodyTooLarge(f"the body has {request.content_length} bytes; this server takes {limit_bytes}")
        return await request.read()
