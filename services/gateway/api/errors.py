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


class EndpointNotSupported(NotFound):
    """Raised by the HTTP layer alone, for endpoints that others have. Clients try again after 501, not after 404."""

    code = "endpoint_not_supported"


_SERVED = "POST /v1/completions and /v1/chat/completions answer prompts; /docs lists all endpoints"

_NOT_SERVED = {
    "embeddings": "embeddings: the model here generates text",
    "score": "scores: the model here generates text",
    "rerank": "ranking: the model here generates text",
    "pooling": "pooling: the model here generates text",
    "classify": "classes: the model here generates text",
    "moderations": "moderation: the model here generates text",
    "images": "images: the model here takes and gives text",
    "videos": "videos: the model here takes and gives text",
    "audio": "audio: the model here takes and gives text",
    "realtime": "audio: the model here takes and gives text",
    "files": "files: send texts with the request",
    "uploads": "files: send texts with the request",
    "vector_stores": "files: send texts with the request",
    "containers": "files: send texts with the request",
    "batches": "batches: send the requests themselves, as many at a time as you like; priority orders them",
    "fine_tuning": "training: serve a trained model with PRFAAS_MODEL",
    "fine-tunes": "training: serve a trained model with PRFAAS_MODEL",
    "evals": "evaluations: a program that asks this server makes them",
    "assistants": "assistants: send the whole conversation with each request",
    "threads": "assistants: send the whole conversation with each request",
    "conversations": "conversations: send the whole conversation with each request",
    "responses": "stored responses: send the whole conversation with each request",
    "messages": "Anthropic's API: send the conversation to /v1/chat/completions",
    "organization": "accounts",
    "edits": "edits: put the instruction into a prompt",
    "engines": "engines: /v1/models lists the model",
    "load_lora_adapter": "adapters: serve a merged model with PRFAAS_MODEL",
    "unload_lora_adapter": "adapters: serve a merged model with PRFAAS_MODEL",
}
"""Endpoints of OpenAI's API, and of servers like it, by the first part of their path behind /v1: what there is not."""


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
        return _not_found(request.path)
    if isinstance(exception, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(exception.allowed_methods))
        return MethodNotAllowed(f"{request.path} does not take {request.method}; use {allowed}")
    if exception.status == 413:
        return BodyTooLarge("the body is larger than this server accepts")
    if exception.status < 500:
        return BadRequest(exception.reason)
    return Internal(exception.reason)


def _not_found(path: str) -> NotFound:
    first, _, rest = path.lstrip("/").partition("/")
    absent = _NOT_SERVED.get(rest.partition("/")[0] if first == "v1" else first)
    if absent is None:
        return NotFound(f"there is nothing at {path}; {_SERVED}")
    return EndpointNotSupported(f"{path}: this server has no {absent}; {_SERVED}")
