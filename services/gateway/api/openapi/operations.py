"""What each route is for, what it takes and what it answers, by method and path."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from services.gateway.api.bodies.chat import ChatBody
from services.gateway.api.bodies.completion import CompletionBody
from services.gateway.api.bodies.responses import ResponsesBody
from services.gateway.api.bodies.texts import DetokenizeBody, PrefixBody, TokenizeBody
from services.gateway.api.openapi import answers


@dataclass(frozen=True)
class Operation:
    """One method of one path. `errors` are statuses besides 500, which any may have."""

    tag: str
    summary: str
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None  # JSON; without it, `media` says what comes
    event: type[BaseModel] | None = None  # of a stream, where the body asks for one
    media: str = "application/json"
    errors: tuple[int, ...] = ()
    unready: type[BaseModel] | None = None  # the answer with 503
    numbers: Mapping[str, str] | None = None  # parameters behind the question mark
    is_generation: bool = False  # takes the headers of requests that generate


_ANSWERS, _MODEL, _TOKENS = "Answers", "Model", "Tokens"
_PREFIXES, _REQUESTS, _CLUSTER, _PAGES = "Kept prefixes", "Requests", "Cluster", "Pages"
_GENERATION = (400, 404, 413, 429, 503, 504)
_ANY_TEXT = (400, 404, 413)

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): Operation(
        _ANSWERS,
        "Answer a conversation",
        ChatBody,
        answers.ChatCompletionAnswer,
        answers.ChatChunk,
        errors=_GENERATION,
        is_generation=True,
    ),
    ("POST", "/v1/completions"): Operation(
        _ANSWERS,
        "Continue a prompt",
        CompletionBody,
        answers.CompletionAnswer,
        answers.CompletionAnswer,
        errors=_GENERATION,
        is_generation=True,
    ),
    ("POST", "/v1/responses"): Operation(
        _ANSWERS,
        "Answer a list of items; nothing is stored",
        ResponsesBody,
        errors=_GENERATION,
        is_generation=True,
    ),
    ("GET", "/v1/models"): Operation(_MODEL, "List the model", answer=answers.ModelsAnswer),
    ("GET", "/v1/models/{name}"): Operation(_MODEL, "Show the model", answer=answers.ModelAnswer, errors=(404,)),
    ("POST", "/tokenize"): Operation(
        _TOKENS, "Turn a text or a conversation into tokens", TokenizeBody, answers.TokenizeAnswer, errors=_ANY_TEXT
    ),
    ("POST", "/detokenize"): Operation(
        _TOKENS, "Turn tokens into a text", DetokenizeBody, answers.DetokenizeAnswer, errors=_ANY_TEXT
    ),
    ("POST", "/v1/prefixes"): Operation(
        _PREFIXES,
        "Compute the KV of a prompt's beginning and keep it",
        PrefixBody,
        answers.PrefixAnswer,
        errors=_GENERATION,
    ),
    ("GET", "/v1/prefixes"): Operation(_PREFIXES, "List what is kept", answer=answers.PrefixesAnswer),
    ("DELETE", "/v1/prefixes/{id}"): Operation(
        _PREFIXES, "Keep a prefix no longer", answer=answers.DroppedPrefixAnswer, errors=(404, 503)
    ),
    ("GET", "/v1/requests"): Operation(
        _REQUESTS,
        "List the latest requests",
        answer=answers.RequestsAnswer,
        errors=(400,),
        numbers={"limit": "How many, at most.", "before": "Only requests of lower numbers."},
    ),
    ("GET", "/v1/requests/{id}/timeline"): Operation(_REQUESTS, "Tell what a request went through", errors=(404,)),
    ("GET", "/v1/live"): Operation(
        _CLUSTER, "Stream the state of the cluster", media="text/event-stream", errors=(429,)
    ),
    ("GET", "/v1/plan"): Operation(_CLUSTER, "Tell what the controller believes, and how many workers it wants"),
    ("GET", "/health"): Operation(
        _CLUSTER,
        "Tell whether a completion would be accepted now",
        answer=answers.HealthAnswer,
        unready=answers.HealthAnswer,
    ),
    ("GET", "/livez"): Operation(_CLUSTER, "Tell that this gateway runs", answer=answers.LivezAnswer),
    ("GET", "/readyz"): Operation(
        _CLUSTER, "Tell whether this gateway is ready", answer=answers.ReadyzAnswer, unready=answers.ReadyzAnswer
    ),
    ("GET", "/metrics"): Operation(_CLUSTER, "Metrics of this gateway, for Prometheus", media="text/plain"),
    ("GET", "/version"): Operation(_CLUSTER, "Tell the suite's version", answer=answers.VersionAnswer),
    ("GET", "/openapi.json"): Operation(_PAGES, "This description"),
    ("GET", "/docs"): Operation(_PAGES, "This description as a page", media="text/html"),
    ("GET", "/"): Operation(_PAGES, "The page that shows the running suite", media="text/html"),
    ("GET", "/page/{name}"): Operation(_PAGES, "A file of the pages", media="*/*", errors=(404,)),
}
"""A route that is missing here is described by its handler's first line alone."""
