"""`GET /v1/live`: the state of the cluster as server-sent events, for as long as somebody listens."""

import asyncio

from aiohttp import web

from services.gateway.live.state import EVERY_S, LiveState
from shared.errors import Overloaded
from shared.service.health import Health

MAX_LISTENERS = 16
WRITE_S = 5.0
"""A listener that has not taken an event by then is let go; a browser comes back by itself."""

_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class LiveRoutes:
    """Holds the listeners. Nothing is composed while there are none."""

    def __init__(self, state: LiveState, health: Health, max_listeners: int = MAX_LISTENERS) -> None:
        self._state = state
        self._health = health
        self._max_listeners = max_listeners
        self.num_listeners = 0

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/live", self.live)]

    async def live(self, request: web.Request) -> web.StreamResponse:
        """Send an event every `EVERY_S` until the listener goes or this gateway drains. Raises `Overloaded`."""
        if self.num_listeners >= self._max_listeners:
            raise Overloaded(f"{self._max_listeners} listeners are there already", retry_after_s=5.0)
        self.num_listeners += 1
        try:
            response = web.StreamResponse(headers=_HEADERS)
            await response.prepare(request)
            await self._send(response)
            return response
        finally:
            self.num_listeners -= 1

    async def _send(self, response: web.StreamResponse) -> None:
        try:
            while not self._health.draining:
                async with asyncio.timeout(WRITE_S):
                    await response.write(f"event: state\ndata: {self._state.text()}\n\n".encode())
                await asyncio.sleep(EVERY_S)
        except TimeoutError:
            return
