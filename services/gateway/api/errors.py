"""Errors as clients of the OpenAI API expect them, whatever went wrong."""

import math
from typing import Any

from aiohttp import web

from shared.errors import BadRequest, BodyTooLarge, Internal, NotFound, Overloaded, PrfaasError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class MethodNotAllowed(BadRequest):
    """Raised by the HTTP layer alone: gRPC has no methods to mix up."""

    code = "method_not_allowed"
    http_status = 405


def error_object(error: PrfaasError) -> dict[str, Any]:
    """Return the object that OpenAI's clients turn into their exceptions."""
    kind = "server_error" if error.http_status >= 500 else _TYPES.get(error.http_status, "invalid_request_error")
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def error_response(error: PrfaasError) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if error.http_status == 401 else {}  # RFC 6750
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return web.json_response(error_object(error), status=error.http_status, headers=headers)


def from_http(exception: web.HTTPException, request: web.BaseRequest) -> PrfaasError:
    """Translate what aiohttp raises for itself: unknown paths, wrong methods, bodies over the limit."""
    if exception.status == 404:
        return NotFound(f"there is nothing at {request.path}")
    if isinstance(exception, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(exception.allowed_methods))
        return MethodNotAllowed(f"{request.path} does not take {request.method}; use {allowed}")
    if exception.status == 413:
        return BodyTooLarge("the body is larger than this server accepts")
    if exception.status < 500:
        return BadRequest(exception.reason)
    return Internal(exception.reason)
