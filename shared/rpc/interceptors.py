"""What happens around every call: request ids, work in flight, and errors that keep their class across processes."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import grpc.aio

from shared.errors import (
    BadRequest,
    DeadlineExceeded,
    Internal,
    NotFound,
    Overloaded,
    PeerRefused,
    PrfaasError,
    Unauthenticated,
    WorkerLost,
    from_code,
)
from shared.log import REQUEST_ID_KEY, bound_request, current_request_id, get_logger, request_id_or_new
from shared.security.guard import PeerGuard
from shared.service.lifecycle import InFlight
from shared.telemetry.spans import Attributes, current_span
from shared.telemetry.tracing import continued

log = get_logger()

ERROR_KEY = "prfaas-error"
PARAM_KEY = "prfaas-error-param"
RETRY_AFTER_KEY = "prfaas-retry-after-s"

# Health watches never end and reflection is nobody's work: neither is counted, refused or mapped.
_INFRASTRUCTURE = ("/grpc.health.", "/grpc.reflection.")

# gRPC sends the message percent-encoded in a trailer; longer ones would break the limit on metadata.
_MAX_MESSAGE_BYTES = 4096

# What a status means when no error of ours came with it: the transport's own failures, and foreign servers.
_BY_STATUS: dict[grpc.StatusCode, type[PrfaasError]] = {
    grpc.StatusCode.UNAVAILABLE: WorkerLost,
    grpc.StatusCode.CANCELLED: WorkerLost,  # the server gave the call up; our own cancellation is not an AioRpcError
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PeerRefused,
}

# How gRPC tells that we did not accept a server's certificate; that it did not accept ours looks as if it were away.
_REFUSED_BY_US = ("Tls handshake failed", "Hostname Verification Check failed")

if TYPE_CHECKING:  # generic in the stubs only
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler
Metadata = tuple[tuple[str, str], ...]


class CallBoundary(grpc.aio.ServerInterceptor):
    """Wraps every handler of a server: checks the caller, binds the request id, counts the call, maps what it raises.

    A method is served only with a certificate that has the right to it, where there is a `guard`.
    """

    def __init__(
        self, inflight: InFlight, accept_while_draining: Collection[str] = (), guard: PeerGuard | None = None
    ) -> None:
        self._inflight = inflight
        self._guard = guard
        self._accept_while_draining = frozenset(accept_while_draining)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_INFRASTRUCTURE):
            return handler  # None: gRPC answers UNIMPLEMENTED
        return self._wrap(handler, method)

    def _wrap(self, handler: Handler, method: str) -> Handler:
        codecs = (handler.request_deserializer, handler.response_serializer)
        if handler.response_streaming:
            behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
            streamed = self._streaming(behaviour, method)
            if handler.request_streaming:
                return grpc.stream_stream_rpc_method_handler(streamed, *codecs)
            return grpc.unary_stream_rpc_method_handler(streamed, *codecs)
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        answered = self._unary(behaviour, method)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(answered, *codecs)
        return grpc.unary_unary_rpc_method_handler(answered, *codecs)

    def _unary(self, behaviour: Any, method: str) -> Any:
        _require_async(behaviour, method)

        async def unary(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            async with self._call(method, context):
                return await behaviour(request, context)

        return unary

    def _streaming(self, behaviour: Any, method: str) -> Any:
        _require_async(behaviour, method)

        async def written(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            async with self._call(method, context):
                await behaviour(request, context)

        async def generated(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            # gRPC itself leaves a cancelled generator to the garbage collector; here its `finally` blocks run at once,
            # in the call's own task, before the call leaves the count of work in flight.
            async with self._call(method, context), aclosing(behaviour(request, context)) as messages:
                async for message in messages:
                    await context.write(message)

        return generated if inspect.isasyncgenfunction(behaviour) else written

    @asynccontextmanager
    async def _call(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
        metadata = context.invocation_metadata()
        request_id = request_id_or_new(_metadata_value(metadata, REQUEST_ID_KEY))
        serving = continued(method.lstrip("/"), metadata or (), _rpc(method, request_id))
        with bound_request(request_id), serving as span:
            try:
                if self._guard is not None:
                    self._guard.check_call(method, context.peer(), context.auth_context())
                with self._inflight.track(even_when_draining=method in self._accept_while_draining):
                    yield
            except grpc.aio.AbortError:
                raise
            except Exception as raised:  # noqa: BLE001 - the boundary: everything becomes a status, and is logged
                error = _as_prfaas_error(raised, method)
                span.failed(error.code)
                await context.abort(error.grpc_status, _clipped(str(error)), trailing_metadata=error_metadata(error))


def request_metadata() -> Metadata:
    """Return the metadata that carries the current request's id and span to a peer."""
    request_id, carrier = current_request_id(), current_span().carrier
    return carrier if request_id is None else ((REQUEST_ID_KEY, request_id), *carrier)


def error_metadata(error: PrfaasError) -> Metadata:
    """Return the trailing metadata from which `error_from_call` rebuilds `error`."""
    entries = [(ERROR_KEY, error.code)]
    if error.param is not None:
        entries.append((PARAM_KEY, error.param.encode("ascii", "backslashreplace").decode()))
    if isinstance(error, Overloaded):
        entries.append((RETRY_AFTER_KEY, f"{error.retry_after_s:.3f}"))
    return tuple(entries)


def error_from_call(failure: grpc.aio.AioRpcError, peer: str) -> PrfaasError:
    """Return what the server raised, or what the failure of the transport means."""
    trailers = failure.trailing_metadata()
    details = failure.details() or failure.code().name
    code = _metadata_value(trailers, ERROR_KEY)
    if code is None and any(sign in details for sign in _REFUSED_BY_US):
        return PeerRefused(f"{peer}: its certificate is not accepted: {details}")
    if code is None:
        return _BY_STATUS.get(failure.code(), Internal)(f"{peer}: {details}")
    error = from_code(code, details)
    error.param = _metadata_value(trailers, PARAM_KEY)
    retry_after = _metadata_value(trailers, RETRY_AFTER_KEY)
    if isinstance(error, Overloaded) and retry_after is not None:
        error.retry_after_s = float(retry_after)
    return error


def _as_prfaas_error(raised: Exception, method: str) -> PrfaasError:
    leaves = list(_leaves(raised))
    ours = [leaf for leaf in leaves if isinstance(leaf, PrfaasError)]
    if len(ours) < len(leaves):
        log.error("rpc_crashed", method=method, exc_info=raised)
        return Internal("internal error")  # what broke is in the log, not on the wire
    if isinstance(ours[0], PeerRefused):
        return ours[0]  # the guard has logged it, unless it is one of many
    level = log.warning if ours[0].http_status >= 500 else log.info
    level("rpc_failed", method=method, code=ours[0].code, error=str(ours[0]))
    return ours[0]


def _rpc(method: str, request_id: str) -> Attributes:
    service, _, name = method.lstrip("/").rpartition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name, "prfaas.request_id": request_id}


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the single errors in `error`: a handler's TaskGroup wraps them."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _require_async(behaviour: Any, method: str) -> None:
    if not (inspect.isasyncgenfunction(behaviour) or inspect.iscoroutinefunction(behaviour)):
        raise TypeError(f"the handler of {method} must be an async def")


def _clipped(message: str) -> str:
    return message.encode("utf-8", "replace")[:_MAX_MESSAGE_BYTES].decode("utf-8", "ignore")


def _metadata_value(metadata: grpc.aio.Metadata | None, key: str) -> str | None:
    for name, value in metadata or ():
        if name == key:
            return value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return None
