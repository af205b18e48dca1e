"""Server-sent events: one JSON object an event, each flushed at once, and an end that says whether it is the end."""

import asyncio
import json
from contextlib import suppress

from aiohttp import web

from services.gateway.api.errors import error_object
from shared.errors import PrfaasError

_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_LAST_WORD_S = 1.0  # for a client that may have stopped reading


class EventStream:
    """One response. Nothing is sent before `open`, so that a request that fails early gets a real status."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(headers=_HEADERS)
        self.is_open = False

    async def open(self) -> None:
        self.is_open = True
        await self._response.prepare(self._request)

    async def send(self, *objects: str) -> None:
        """Write one event for each object, which is JSON in one line; all together."""
        if objects:
            await self._response.write("".join([f"data: {data}\n\n" for data in objects]).encode())

    async def finish(self) -> web.StreamResponse:
        """Say that the answer is complete."""
        await self.send("[DONE]")
        await self._response.write_eof()
        return self._response

    async def fail(self, error: PrfaasError) -> web.StreamResponse:
        """Say that the answer broke off. No [DONE] follows: a reader must not take it for complete."""
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_LAST_WORD_S):
                await self.send(json.dumps(error_object(error)))
                await self._response.write_eof()
        return self._response
