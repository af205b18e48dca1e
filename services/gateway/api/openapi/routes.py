"""`GET /openapi.json`: the description of the application that serves it."""

import json

from aiohttp import web

from services.gateway.api.openapi.document import openapi_document


class OpenApiRoutes:
    """Describes the application when it is asked for the first time: all routes are there by then."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._text: str | None = None

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/openapi.json", self.document)]

    async def document(self, request: web.Request) -> web.Response:
        if self._text is None:
            self._text = json.dumps(openapi_document(request.app.router, self._version))
        return web.Response(text=self._text, content_type="application/json")
