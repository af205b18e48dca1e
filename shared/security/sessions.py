"""TLS contexts whose every new session uses the newest certificate, and which tell of handshakes that fail."""

import ssl
from collections.abc import Callable
from typing import Any

from shared.security.files import CertificateFiles
from shared.security.refusals import Kind, Refusals

_NOT_YET = (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLZeroReturnError, ssl.SSLEOFError)
_OF_STRANGERS = ("HTTP_REQUEST", "UNEXPECTED_EOF_WHILE_READING")


class LiveContext(ssl.SSLContext):
    """Stands for whichever context is the current one: libraries keep it for as long as they listen."""

    current: Callable[[], ssl.SSLContext]

    @classmethod
    def of(cls, protocol: int, current: Callable[[], ssl.SSLContext]) -> "LiveContext":
        context = cls(protocol)
        context.current = current
        return context

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self.current().wrap_bio(*args, **kwargs)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        return self.current().wrap_socket(*args, **kwargs)


def server_context(
    files: CertificateFiles, kind: Kind, refusals: Refusals, *, needs_certificate: bool
) -> ssl.SSLContext:
    """Return a context of a server; without `needs_certificate` a client may show none, but no wrong one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED if needs_certificate else ssl.CERT_OPTIONAL
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if needs_certificate else ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0  # whoever resumed a session would not show a certificate again
    context.options |= ssl.OP_NO_TICKET
    _load(context, files)
    context.sslobject_class = _watched(kind, refusals)
    return context


def lane_context(files: CertificateFiles, refusals: Refusals) -> ssl.SSLContext:
    """Return a context of a link's client, which names the server that it expects by `identity.server_name`."""
    context = _client(files)
    context.sslobject_class = _watched("lane", refusals)
    return context


def probe_context(files: CertificateFiles) -> ssl.SSLContext:
    """Return a context like that of gRPC's clients, whose failures are for the caller to tell of."""
    context = _client(files)
    context.set_alpn_protocols(["h2"])
    return context


def _client(files: CertificateFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load(context, files)
    return context


def _load(context: ssl.SSLContext, files: CertificateFiles) -> None:
    context.load_cert_chain(files.cert, files.key)
    context.load_verify_locations(files.ca)


def _watched(kind: Kind, refusals: Refusals) -> type[ssl.SSLObject]:
    """Return a class of sessions that tells of refusals.

    A client of TLS 1.3 is told only when it reads that the server did not accept its certificate.
    """

    class WatchedSession(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except _NOT_YET:
                raise
            except ssl.SSLError as error:
                _note(kind, refusals, error)
                raise

        def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - ssl's own name
            try:
                return super().read(len, buffer) if buffer is not None else super().read(len)
            except _NOT_YET:
                raise
            except ssl.SSLError as error:
                if is_alert(error):
                    _note(kind, refusals, error)
                raise

    return WatchedSession


def _note(kind: Kind, refusals: Refusals, error: ssl.SSLError) -> None:
    if error.reason not in _OF_STRANGERS:
        refusals.note(kind, "peer" if is_alert(error) else "us", reason_of(error))


def is_alert(error: ssl.SSLError) -> bool:
    """Tell whether it was the peer that refused, and said so."""
    return "ALERT" in (error.reason or "")


def reason_of(error: ssl.SSLError) -> str:
    """Return why a handshake failed, for people."""
    told = getattr(error, "verify_message", None)
    return f"certificate verify failed: {told}" if told else (error.reason or str(error)).lower().replace("_", " ")
