"""`GET /v1/plan`: what the controller believes, measures and wants."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web


class CapacityRoutes:
    """The long timescale, for operators and autoscalers."""

    def __init__(self, answer: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        self._answer = answer

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/plan", self.plan)]

    async def plan(self, _request: web.Request) -> web.Response:
        """200 also while too little is known: the answer then says what is missing."""
        return web.json_response(await self._answer())
