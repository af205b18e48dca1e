"""Structured logs: one processor chain for our events and for the libraries' stdlib records, request ids included."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import FilteringBoundLogger, Processor

from shared.ids import RequestId, new_request_id

REQUEST_ID_KEY = "prfaas-request-id"
"""Name of the gRPC metadata entry and of the Kafka header that carry a request's id between processes."""

MAX_REQUEST_ID_CHARS = 128

_CONTEXT_KEY = "request_id"
_TRACE_KEY = "trace_id"

# These retry on their own and say so at error level several times a second; our own events report the connection.
_NOISY_LOGGERS = ("aiokafka", "opentelemetry")


def get_logger() -> FilteringBoundLogger:
    """Return a logger: `log.info("blocks_published", num_blocks=3)`. Event names are past tense, names carry units."""
    return cast(FilteringBoundLogger, structlog.get_logger())


def configure(service: str, *, level: str = "info", fmt: str = "json", **fields: str) -> None:
    """Send every log line of this process to stdout; `fields` (such as `dc`) go on each of them."""
    fixed = {"service": service, **fields}
    threshold = logging.getLevelNamesMapping()[level.upper()]
    stamp: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        lambda _logger, _method, event: {**fixed, **event},
    ]
    render = _renderers(fmt)
    structlog.configure(
        processors=[*stamp, *render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
        cache_logger_on_first_use=False,  # module-level loggers follow a later configure(), and capture_logs() in tests
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(_tone_down(threshold))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *stamp],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.INFO))  # libraries' debug logs would drown ours
    logging.captureWarnings(capture=True)


@contextmanager
def bound_request(request_id: str) -> Iterator[None]:
    """Put `request_id` on every log line, outgoing call and published event of this context."""
    with structlog.contextvars.bound_contextvars(**{_CONTEXT_KEY: request_id}):
        yield


def bound_request_of(request_id: RequestId | None) -> AbstractContextManager[None]:
    """Do the same for a request of which a loop of many takes care; None: it has no id."""
    return nullcontext() if request_id is None else bound_request(request_id)


def bound_trace(trace_id: str | None) -> AbstractContextManager[None]:
    """Put the id of a trace on every log line of this context; None, or the one that is there: nothing changes."""
    if trace_id is None or structlog.contextvars.get_contextvars().get(_TRACE_KEY) == trace_id:
        return nullcontext()
    return structlog.contextvars.bound_contextvars(**{_TRACE_KEY: trace_id})


def current_request_id() -> RequestId | None:
    value = structlog.contextvars.get_contextvars().get(_CONTEXT_KEY)
    return None if value is None else RequestId(value)


def request_id_or_new(text: str | None) -> RequestId:
    """Return the id that a peer or a client sent, if it is fit for headers and logs, else a fresh one."""
    fit = text is not None and 0 < len(text) <= MAX_REQUEST_ID_CHARS and text.isascii() and text.isprintable()
    return RequestId(text) if text is not None and fit else new_request_id()


def _renderers(fmt: str) -> list[Processor]:
    if fmt == "console":
        return [structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())]
    encode = json.JSONEncoder(default=_jsonable).encode  # `json.dumps` would make an encoder for each line
    # Without local variables: prompts and weights are among them.
    tracebacks = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
    return [tracebacks, lambda _logger, _method, event: encode(event)]


def _jsonable(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)


def _tone_down(threshold: int) -> logging.Filter:
    class ToneDown(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if record.name.partition(".")[0] not in _NOISY_LOGGERS:
                return True
            record.levelno, record.levelname = logging.DEBUG, "DEBUG"
            return threshold <= logging.DEBUG

    return ToneDown()
