"""What `/v1/responses` has for responses that were stored: here none is."""

from typing import NoReturn

from aiohttp import web

from shared.errors import NotFound

_RESPONSE = "/v1/responses/{id}"


class UnstoredRoutes:
    """Answers 404, with the reason."""

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get(_RESPONSE, self.nothing),
            web.delete(_RESPONSE, self.nothing),
            web.post(f"{_RESPONSE}/cancel", self.nothing),
            web.get(f"{_RESPONSE}/input_items", self.nothing),
        ]

    async def nothing(self, request: web.Request) -> NoReturn:
        """Raises `NotFound`."""
        name = request.match_info["id"][:64]
        raise NotFound(f"there is no response {name!r}: this server keeps none, and says so by store: false")
