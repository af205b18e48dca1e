"""Server-sent events: one JSON object an event, each flushed at once, and an end that says whether it is the end."""

import asyncio
import json
from contextlib import suppress
from typing import Any

from aiohttp import web

from services.gateway.api.errors import error_object
from shared.errors import PrfaasError

_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_LAST_WORD_S = 1.0  # for a client that may have stopped reading


class EventStream:
    """One response. Nothing is sent before `open`, so that a request that fails early gets a real status."""

    def __init__(self, request: web.Request, *, names_events: bool = False) -> None:
        """`names_events`: each event has the name that its object has as `type`, and its end needs no mark."""
        self._request = request
        self._names_events = names_events
        self._num_sent = 0
        self._response = web.StreamResponse(headers=_HEADERS)
        self.is_open = False

    async def open(self) -> None:
        self.is_open = True
        await self._response.prepare(self._request)

    async def send(self, *objects: str) -> None:
        """Write one event for each object, which is JSON in one line; all together."""
        if objects:
            self._num_sent += len(objects)
            name = _named if self._names_events else _unnamed
            await self._response.write("".join([name(data) for data in objects]).encode())

    async def finish(self) -> web.StreamResponse:
        """Say that the answer is complete."""
        if not self._names_events:
            await self.send("[DONE]")
        await self._response.write_eof()
        return self._response

    async def fail(self, error: PrfaasError) -> web.StreamResponse:
        """Say that the answer broke off. No [DONE] follows: a reader must not take it for complete."""
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_LAST_WORD_S):
                await self.send(json.dumps(self._failure(error)))
                await self._response.write_eof()
        return self._response

    def _failure(self, error: PrfaasError) -> dict[str, Any]:
        if not self._names_events:
            return error_object(error)
        told = {"code": error.code, "message": str(error), "param": error.param}
        return {"type": "error", **told, "sequence_number": self._num_sent}


def _unnamed(data: str) -> str:
    return f"data: {data}\n\n"


def _named(data: str) -> str:
    return f"event: {json.loads(data)['type']}\ndata: {data}\n\n"
