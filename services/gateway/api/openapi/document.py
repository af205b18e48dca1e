"""The OpenAPI document: every route of the application, with the types of what it takes and answers."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from services.gateway.api.bodies.sampling import Sampling
from services.gateway.api.openapi.answers import ErrorAnswer
from services.gateway.api.openapi.notes import NOTES
from services.gateway.api.openapi.operations import OPERATIONS, Operation
from shared.errors import PrfaasError

Json = dict[str, Any]

_REF = "#/components/schemas/{model}"
_ERRORS = {
    400: "The request is wrong.",
    404: "It does not exist here.",
    413: "The body is too large.",
    429: "Too much is asked for at the moment.",
    500: "The server failed.",
    503: "No worker can serve it now.",
    504: "The time for the request is over.",
}
_HEADERS = {
    "X-Request-Id": ("Names the request, in logs, in its answer and in /v1/requests.", {"type": "string"}),
    "X-SLO-TTFT-MS": ("The latest first token, in milliseconds: 429 if that cannot be.", {"type": "string"}),
    "X-SLO-TPOT-MS": ("The same for each further token.", {"type": "string"}),
}


def openapi_document(router: web.UrlDispatcher, version: str) -> Json:
    """Return the document that describes the routes of `router`: OpenAPI 3.1."""
    routes = [(method, path, _operation(method, path, summary)) for method, path, summary in _routes(router)]
    paths: dict[str, Json] = {}
    for method, path, operation in routes:
        paths.setdefault(path, {})[method.lower()] = _described(method, path, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "PrfaaS",
            "version": version,
            "summary": "LLM serving where prefill is a service",
            "description": "OpenAI's API for completions and chats, with fields of vLLM's, and what this suite adds.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(operation.tag for _, _, operation in _sorted(routes))],
        "paths": paths,
        "components": {"schemas": _schemas([operation for _, _, operation in routes]), "responses": _responses()},
    }


def _sorted(routes: Iterable[tuple[str, str, Operation]]) -> list[tuple[str, str, Operation]]:
    """Return routes in the order of the table, others behind them."""
    places = {key: place for place, key in enumerate(OPERATIONS)}
    return sorted(routes, key=lambda route: places.get(route[:2], len(places)))


def _routes(router: web.UrlDispatcher) -> Iterator[tuple[str, str, str]]:
    """Yield method, path and the handler's first line of each route. HEAD goes without saying."""
    found = {}
    for route in router.routes():
        if route.resource is not None and route.method not in ("HEAD", "*"):
            summary = (route.handler.__doc__ or "").strip().partition("\n")[0]
            found[route.method, route.resource.canonical] = summary
    places = {key: place for place, key in enumerate(OPERATIONS)}
    for (method, path), summary in sorted(found.items(), key=lambda item: places.get(item[0], len(places))):
        yield method, path, summary


def _operation(method: str, path: str, summary: str) -> Operation:
    return OPERATIONS.get((method, path)) or Operation("Other", summary or f"{method} {path}")


def _described(method: str, path: str, operation: Operation) -> Json:
    described: Json = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "operationId": "_".join(re.findall(r"\w+", f"{method.lower()} {path}")),
        "responses": {"200": _answer(operation)},
    }
    if parameters := list(_parameters(path, operation)):
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(operation.body)}}}
    for status in sorted({*operation.errors, 500}):
        described["responses"][str(status)] = {"$ref": f"#/components/responses/{status}"}
    if operation.unready is not None:
        content = {"application/json": {"schema": _ref(operation.unready)}}
        described["responses"]["503"] = {"description": "Not now.", "content": content}
    return described


def _answer(operation: Operation) -> Json:
    schema = {"type": "object"} if operation.answer is None else _ref(operation.answer)
    is_json = operation.media == "application/json"
    content: Json = {operation.media: {"schema": schema if is_json else {"type": "string"}}}
    if operation.event is not None:
        content["text/event-stream"] = {"schema": _ref(operation.event)}
    streamed = " With `stream: true`, events of JSON, the last one [DONE]." if operation.event is not None else ""
    return {"description": f"As asked.{streamed}", "content": content}


def _parameters(path: str, operation: Operation) -> Iterator[Json]:
    for name in re.findall(r"{(\w+)}", path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    for name, meaning in (operation.numbers or {}).items():
        schema = {"type": "integer", "minimum": 1}
        yield {"name": name, "in": "query", "description": meaning, "schema": schema}
    if operation.is_generation:
        for name, (meaning, kind) in _HEADERS.items():
            yield {"name": name, "in": "header", "description": meaning, "schema": kind}


def _responses() -> Json:
    """Return the errors by status, each with the codes that have it."""
    content = {"application/json": {"schema": _ref(ErrorAnswer)}}
    responses: Json = {}
    for status, meaning in _ERRORS.items():
        codes = ", ".join(f"`{code}`" for code in sorted(_codes(PrfaasError, status)))
        responses[str(status)] = {"description": f"{meaning} Codes: {codes}.", "content": content}
    wait = {"description": "Seconds until it may be tried again, where waiting helps.", "schema": {"type": "integer"}}
    responses["429"]["headers"] = {"Retry-After": wait}
    return responses


def _codes(cls: type[PrfaasError], status: int) -> set[str]:
    own = {cls.code} if cls.http_status == status else set()
    return own.union(*(_codes(child, status) for child in cls.__subclasses__()))


def _ref(cls: type[BaseModel]) -> Json:
    return {"$ref": _REF.format(model=cls.__name__)}


def _schemas(operations: Iterable[Operation]) -> Json:
    bodies = {operation.body for operation in operations if operation.body is not None}
    answers = {cls for operation in operations for cls in (operation.answer, operation.event, operation.unready) if cls}
    wanted = [(cls, "validation") for cls in sorted(bodies | answers | {ErrorAnswer}, key=lambda cls: cls.__name__)]
    _, found = models_json_schema(wanted, ref_template=_REF)  # type: ignore[arg-type]
    schemas: Json = {name: _plain(schema) for name, schema in found["$defs"].items()}
    for cls in bodies:
        _annotate(schemas[cls.__name__]["properties"], getattr(cls, "neutral", {}))
        if issubclass(cls, Sampling):
            schemas[cls.__name__].pop("description", None)  # about the class, not the body
    return schemas


def _annotate(properties: dict[str, Json], neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """Say of each field what it is for, and of those that are refused that they are."""
    for name, schema in properties.items():
        if name in neutral:
            allowed = ", ".join(f"`{value!r}`" for value in neutral[name])
            schema["deprecated"] = True
            schema["description"] = f"Not supported. {f'May be {allowed}.' if allowed else 'Leave it out.'}"
        elif name in NOTES:
            schema["description"] = NOTES[name]


def _plain(schema: Any) -> Any:
    """Return a schema without titles that only repeat names, and without the default null of optional fields."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key != "title" or not isinstance(value, str)}
    if kept.get("default", ...) is None:
        del kept["default"]
    return {key: _plain(value) for key, value in kept.items()}
