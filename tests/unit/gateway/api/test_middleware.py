"""What surrounds every HTTP request: outcomes and their log lines."""

from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from services.gateway.api.middleware import CLIENT_GONE, REQUEST_ID_HEADER, envelope
from services.gateway.metrics import GatewayMetrics
from shared.errors import Overloaded
from shared.metrics import Metrics
from shared.service.http import HttpServer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def outcome(handler: Handler) -> tuple[int, str, Metrics, list[str]]:
    """Serve one request; return its status, its id, the metrics and the statuses that were logged."""
    metrics = Metrics()
    app = web.Application(middlewares=[envelope(GatewayMetrics(metrics, "m"))])
    app.router.add_get("/v1/thing", handler)
    with capture_logs() as logs:
        async with HttpServer(app, "127.0.0.1", 0) as server, aiohttp.ClientSession() as session:
            url, headers = f"http://127.0.0.1:{server.port}/v1/thing", {REQUEST_ID_HEADER: "my-id"}
            async with session.get(url, headers=headers) as reply:
                status, request_id = reply.status, reply.headers[REQUEST_ID_HEADER]
    ended = [str(line["status"]) for line in logs if line["event"] == "request_ended"]
    assert not [line for line in logs if line["event"] == "request_crashed"]
    return status, request_id, metrics, ended


async def test_a_client_that_left_is_an_outcome_of_its_own_not_an_error_and_not_a_cancellation() -> None:
    async def handler(_request: web.Request) -> web.StreamResponse:
        raise ConnectionResetError("Cannot write to closing transport")

    status, request_id, metrics, ended = await outcome(handler)
    assert (status, request_id, ended) == (CLIENT_GONE, "my-id", ["499"])
    assert errors(metrics) == 0


@pytest.mark.parametrize("code", ["overloaded"])
async def test_an_error_is_counted_and_logged_with_its_status(code: str) -> None:
    async def handler(_request: web.Request) -> web.StreamResponse:
        raise Overloaded("full")

    status, _, metrics, ended = await outcome(handler)
    assert (status, ended) == (429, ["429"])
    assert metrics.registry.get_sample_value("prfaas:request_errors_total", {"model_name": "m", "code": code}) == 1


def errors(metrics: Metrics) -> float:
    """Return the number of requests that count as answered with an error."""
    samples = (sample for family in metrics.registry.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == "prfaas:request_errors_total")
