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

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(headers=_HEADERS)

    @property
    def is_open(self) -> bool:
        return self._response.prepared

    async def open(self) -> None:
        await self._response.prepare(self._request)

    async def send(self, *objects: dict[str, Any]) -> None:
        """Write one event for each object, together."""
        if objects:
            await self._response.write(b"".join(_event(json.dumps(item, ensure_ascii=False)) for item in objects))

    async def finish(self) -> web.StreamResponse:
        """Say that the answer is complete."""
        await self._response.write(_event("[DONE]"))
        await self._response.write_eof()
        return self._response

    async def fail(self, error: PrfaasError) -> web.StreamResponse:
        """Say that the answer broke off. No [DONE] follows: a reader must not take it for complete."""
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_LAST_WORD_S):
                await self.send(error_object(error))
                await self._response.write_eof()
        return self._response


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
