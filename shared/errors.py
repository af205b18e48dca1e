"""Every error that may leave a service, with the status it becomes on each protocol.

PrfaasError
├── BadRequest                 400  INVALID_ARGUMENT     the caller must change the request
│   └── ContextTooLong         400  INVALID_ARGUMENT
├── Unauthenticated            401  UNAUTHENTICATED
├── Forbidden                  403  PERMISSION_DENIED    known, and not allowed
├── NotFound                   404  NOT_FOUND
│   ├── ModelNotFound          404  NOT_FOUND
│   └── BlockMissing           404  NOT_FOUND            a KV entry that nobody here holds or is writing
├── BodyTooLarge               413  OUT_OF_RANGE
├── Overloaded                 429  RESOURCE_EXHAUSTED   retry after `retry_after_s`
│   └── RateLimited            429  RESOURCE_EXHAUSTED   the tenant's own limit
├── Unavailable                503  UNAVAILABLE
│   ├── Draining               503  UNAVAILABLE
│   ├── NoWorker               503  UNAVAILABLE
│   ├── PeerRefused            503  PERMISSION_DENIED    certificates or rights of two services do not fit
│   └── WorkerLost             503  UNAVAILABLE          the peer died or cannot be reached
│       └── LaneBroken         503  UNAVAILABLE          payloads cannot come that way; they can come in messages
├── DeadlineExceeded           504  DEADLINE_EXCEEDED
├── LeaseExpired               500  ABORTED              a writer or reader outstayed its lease
├── CorruptFrame               500  DATA_LOSS            a checksum or a frame header is wrong
├── BadEvent                   500  DATA_LOSS            a Kafka record that cannot be an event of ours
├── ModelMismatch              500  FAILED_PRECONDITION  fingerprint or layout differ between two services
├── ModelFileError             500  FAILED_PRECONDITION  a model file is missing, damaged or unsupported
├── SettingsError              500  FAILED_PRECONDITION  the process cannot start with these settings (exit code 2)
└── Internal                   500  INTERNAL

`retriable` says whether the gateway sends the same request to another worker: the failure is that worker's own, and the
worker has ended its part. Callers branch on it, never on a message.
"""

from typing import ClassVar

import grpc


class PrfaasError(Exception):
    """Base of the tree. `str(error)` is the message a user may see."""

    code: ClassVar[str] = "internal_error"
    retriable: ClassVar[bool] = False
    grpc_status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class BadRequest(PrfaasError):
    code = "invalid_request"
    grpc_status = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400


class ContextTooLong(BadRequest):
    code = "context_length_exceeded"


class Unauthenticated(PrfaasError):
    code = "invalid_api_key"
    grpc_status = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401


class Forbidden(PrfaasError):
    code = "forbidden"
    grpc_status = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403


class NotFound(PrfaasError):
    code = "not_found"
    grpc_status = grpc.StatusCode.NOT_FOUND
    http_status = 404


class ModelNotFound(NotFound):
    code = "model_not_found"


class BlockMissing(NotFound):
    code = "block_missing"


class BodyTooLarge(PrfaasError):
    code = "body_too_large"
    grpc_status = grpc.StatusCode.OUT_OF_RANGE
    http_status = 413


class Overloaded(PrfaasError):
    code = "overloaded"
    retriable = True
    grpc_status = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = 1.0) -> None:
        """`retry_after_s` is None where waiting would not help."""
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    code = "rate_limit_exceeded"


class Unavailable(PrfaasError):
    code = "unavailable"
    retriable = True
    grpc_status = grpc.StatusCode.UNAVAILABLE
    http_status = 503


class Draining(Unavailable):
    code = "draining"


class NoWorker(Unavailable):
    code = "no_worker"


class PeerRefused(Unavailable):
    code = "peer_refused"
    grpc_status = grpc.StatusCode.PERMISSION_DENIED


class WorkerLost(Unavailable):
    code = "worker_lost"


class LaneBroken(WorkerLost):
    code = "lane_broken"


class DeadlineExceeded(PrfaasError):
    code = "deadline_exceeded"
    grpc_status = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504


class LeaseExpired(PrfaasError):
    code = "lease_expired"
    grpc_status = grpc.StatusCode.ABORTED


class CorruptFrame(PrfaasError):
    code = "corrupt_frame"
    grpc_status = grpc.StatusCode.DATA_LOSS


class BadEvent(PrfaasError):
    code = "bad_event"
    grpc_status = grpc.StatusCode.DATA_LOSS


class ModelMismatch(PrfaasError):
    code = "model_mismatch"
    grpc_status = grpc.StatusCode.FAILED_PRECONDITION


class ModelFileError(PrfaasError):
    code = "model_file_error"
    grpc_status = grpc.StatusCode.FAILED_PRECONDITION


class SettingsError(PrfaasError):
    code = "settings_error"
    grpc_status = grpc.StatusCode.FAILED_PRECONDITION


class Internal(PrfaasError):
    pass


def _subclasses(cls: type[PrfaasError]) -> list[type[PrfaasError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _subclasses(child))]


def from_code(code: str, message: str) -> PrfaasError:
    """Rebuild the error that a peer raised from its `code`; an unknown code becomes `Internal`."""
    for cls in _subclasses(PrfaasError):
        if cls.code == code and cls is not PrfaasError:
            return cls(message)
    return Internal(message)
