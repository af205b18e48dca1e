"""What traces tell of HTTP requests: names and facts by the semantic conventions for HTTP and for generative AI."""

from contextlib import AbstractContextManager, nullcontext

from aiohttp import web

from services.gateway.request.generation import Prepared
from shared.ids import RequestId
from shared.telemetry.spans import NO_SPAN, Attributes, TraceSpan
from shared.telemetry.tracing import begun


def serving(request: web.Request, request_id: RequestId) -> AbstractContextManager[TraceSpan]:
    """Trace the body as the serving of a request. Reads are not traced: pages and tools repeat them all day."""
    if request.method != "POST" or not request.path.startswith("/v1/"):
        return nullcontext(NO_SPAN)
    resource = request.match_info.route.resource
    route = None if resource is None else resource.canonical
    attributes: Attributes = {
        "http.request.method": request.method,
        "http.route": route,
        "url.path": request.path,
        "url.scheme": request.scheme,
        "prfaas.request_id": request_id,
    }
    name = request.method if route is None else f"{request.method} {route}"
    headers = ((name.lower(), value) for name, value in request.headers.items())
    return begun(name, headers, attributes)


def answered(span: TraceSpan, status: int) -> None:
    """Note a request's status. Only those of 500 and more are the server's failures."""
    span.set({"http.response.status_code": status})
    if status >= 500:
        span.failed(str(status))


def asked(model: str, prepared: Prepared) -> Attributes:
    """Return what a request asks for."""
    sampling = prepared.requests[0].sampling
    return {
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.request.n": prepared.num_choices,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
    }
