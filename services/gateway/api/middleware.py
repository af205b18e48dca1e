"""Around every HTTP request: its id, its log line, and an OpenAI error object for whatever is raised."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from services.gateway.api.errors import error_response, from_http
from services.gateway.api.traced import answered, serving
from services.gateway.metrics import GatewayMetrics
from shared.errors import Internal, PrfaasError
from shared.ids import RequestId
from shared.log import bound_request, get_logger, request_id_or_new

log = get_logger()

REQUEST_ID_HEADER = "X-Request-Id"
CLIENT_GONE = 499
"""The client left while it was being written to; nginx's number, since HTTP has none."""

_REQUEST_ID = web.RequestKey("request_id", RequestId)
_IS_ANSWERED = web.RequestKey("is_answered", bool)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def request_id_of(request: web.Request) -> RequestId:
    return request[_REQUEST_ID]


def note_answered(request: web.Request) -> None:
    """Note that all of a streamed answer is written: who hangs up from now on has it."""
    request[_IS_ANSWERED] = True


def envelope(metrics: GatewayMetrics) -> Middleware:
    """Return the outermost middleware."""

    @web.middleware
    async def handle(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = request_id_or_new(request.headers.get(REQUEST_ID_HEADER))
        request[_REQUEST_ID] = request_id
        started_at = time.monotonic()
        with bound_request(request_id), serving(request, request_id) as span:
            try:
                response = await _answered(request, handler, metrics)
            except asyncio.CancelledError:
                _log_end(request, 200 if request.get(_IS_ANSWERED) else "cancelled", started_at)
                raise
            if not response.prepared:
                response.headers[REQUEST_ID_HEADER] = request_id
            answered(span, response.status)
            _log_end(request, response.status, started_at)
            return response

    return handle


async def echo_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: streams send their headers before the middleware sees them again."""
    if _REQUEST_ID in request:
        response.headers[REQUEST_ID_HEADER] = request_id_of(request)


async def _answered(request: web.Request, handler: Handler, metrics: GatewayMetrics) -> web.StreamResponse:
    """Run the handler; turn what it raises into a response."""
    try:
        return await handler(request)
    except web.HTTPException as exception:
        error: PrfaasError = from_http(exception, request)
    except PrfaasError as failure:
        error = failure
    except ConnectionError:
        return web.Response(status=CLIENT_GONE)  # for the log: there is nobody left to send it to
    except Exception:
        log.exception("request_crashed", path=request.path)
        error = Internal("the server failed to handle this request")
    metrics.request_failed(error.code)
    if error.http_status >= 500:
        log.warning("request_failed", code=error.code, error=str(error))
    return error_response(error)


def _log_end(request: web.Request, status: int | str, started_at: float) -> None:
    if request.path.startswith("/v1/"):
        duration_s = round(time.monotonic() - started_at, 4)
        log.info("request_ended", method=request.method, path=request.path, status=status, duration_s=duration_s)
