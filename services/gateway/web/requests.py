"""`GET /v1/requests` and `GET /v1/requests/{id}/timeline`: what the latest requests went through."""

import time
from collections.abc import Callable

from aiohttp import web

from services.gateway.timeline.shown import summary_of, timeline_of
from services.gateway.timeline.timelines import MAX_ENDED, Timelines
from shared.errors import BadRequest, NotFound

DEFAULT_LIMIT = 100


class RequestRoutes:
    """Reads timelines; changes nothing."""

    def __init__(self, timelines: Timelines, clock: Callable[[], float] = time.monotonic) -> None:
        self._timelines = timelines
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/requests", self.recent),
            web.get("/v1/requests/{id:.+}/timeline", self.timeline),
        ]

    async def recent(self, request: web.Request) -> web.Response:
        """List requests, newest first: at most `limit` of them, of numbers below `before`."""
        limit = _number(request, "limit", DEFAULT_LIMIT)
        before = _number(request, "before", None)
        assert limit is not None, "it has a default"
        if limit > MAX_ENDED:
            raise BadRequest(f"limit is {limit}; at most {MAX_ENDED} requests are listed", param="limit")
        now = self._clock()
        data = [summary_of(timeline, now) for timeline in self._timelines.recent(limit, before)]
        return web.json_response({"object": "list", "data": data, "num_taken": self._timelines.num_taken})

    async def timeline(self, request: web.Request) -> web.Response:
        """Answer one request's timeline, finished or not. Raises `NotFound` for one that is not known any more."""
        request_id = request.match_info["id"]
        found = self._timelines.get(request_id)
        if found is None:
            raise NotFound(f"no timeline of a request {request_id!r}: the latest {MAX_ENDED} are kept", param="id")
        return web.json_response(timeline_of(found, self._clock()))


def _number(request: web.Request, name: str, default: int | None) -> int | None:
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 0 < len(text) <= 15 and int(text) > 0):
        raise BadRequest(f"{name} must be a positive number, not {text!r}", param=name)
    return int(text)
