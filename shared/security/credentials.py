"""One answer from the settings, for all kinds of connection: the scheme of security.

Each place that opens or takes connections is handed its part and passes it on to its library: gRPC servers
(`rpc/server`), gRPC channels (`rpc/client`), HTTP servers (`service/http`), both ends of socket lanes
(`lanes/sockets`) and the clients of Kafka (`bus/connection`).
A scheme is added as one function in `SCHEMES`.
"""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import grpc
from prometheus_client.registry import Collector

from shared.config import ServiceSettings
from shared.errors import SettingsError
from shared.security.channels import ChannelTls
from shared.security.files import Certificate, CertificateFiles, check_own, files_of, read_certificate
from shared.security.guard import PeerGuard
from shared.security.identity import Identity, ServiceRole
from shared.security.kafka import PLAIN_KAFKA, KafkaSecurity, kafka_security
from shared.security.plaintext import check_plaintext
from shared.security.refusals import Refusals, SecurityCollector
from shared.security.reloading import Reloading
from shared.security.sessions import LiveContext, lane_context, probe_context, server_context

SchemeName: TypeAlias = Literal["none", "mtls"]


@dataclass(frozen=True)
class Security:
    """The credentials of one process. None stands for a connection in plain text that everybody may open."""

    grpc_server: grpc.ServerCredentials | None = None
    grpc_channel: ChannelTls | None = None
    http_server: ssl.SSLContext | None = None
    lane_server: ssl.SSLContext | None = None
    lane_client: ssl.SSLContext | None = None
    guard: PeerGuard | None = None  # of the calls, links and readers that come
    collector: Collector | None = None
    kafka: KafkaSecurity = PLAIN_KAFKA


NO_SECURITY = Security()


@dataclass(frozen=True)
class _Made:
    """What is made of one state of the certificate's files."""

    certificate: Certificate
    http_server: ssl.SSLContext
    lane_server: ssl.SSLContext
    lane_client: ssl.SSLContext
    probe: ssl.SSLContext
    grpc_channel: grpc.ChannelCredentials
    grpc_server: grpc.ServerCertificateConfiguration


def mutual_tls(settings: ServiceSettings) -> Security:
    """Return credentials from files, which are read again when they change. Raises `SettingsError`."""
    files, refusals = files_of(settings), Refusals()
    try:
        own = Identity(ServiceRole(settings.service), settings.dc)
    except ValueError as error:
        raise SettingsError(f"PRFAAS_DC: {error}") from None
    newest = Reloading(files.paths, lambda: _make(files, own, refusals), what=str(own)).current
    server, client = ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT
    probe = LiveContext.of(client, lambda: newest().probe)
    return Security(
        grpc_server=_grpc_server(newest),
        grpc_channel=ChannelTls(lambda: newest().grpc_channel, probe, refusals, lambda: str(newest().certificate)),
        http_server=LiveContext.of(server, lambda: newest().http_server),
        lane_server=LiveContext.of(server, lambda: newest().lane_server),
        lane_client=LiveContext.of(client, lambda: newest().lane_client),
        guard=PeerGuard(own, refusals),
        collector=SecurityCollector(refusals, lambda: newest().certificate.not_after),
    )


def _make(files: CertificateFiles, own: Identity, refusals: Refusals) -> _Made:
    certificate = read_certificate(files)
    check_own(certificate, own, files.cert)
    ca, chain, key = certificate.ca_pem, certificate.chain_pem, certificate.key_pem
    return _Made(
        certificate,
        server_context(files, "http", refusals, needs_certificate=False),
        server_context(files, "lane", refusals, needs_certificate=True),
        lane_context(files, refusals),
        probe_context(files),
        grpc.ssl_channel_credentials(ca, key, chain),
        grpc.ssl_server_certificate_configuration([(key, chain)], ca),
    )


def _grpc_server(newest: Callable[[], _Made]) -> grpc.ServerCredentials:
    first = newest().grpc_server
    told = [first]

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Return what has changed since the last connection, in gRPC's thread."""
        latest = newest().grpc_server
        if latest is told[0]:
            return None
        told[0] = latest
        return latest

    return grpc.dynamic_ssl_server_credentials(
        first,
        fetch,  # type: ignore[arg-type] # the stubs do not know that None means: no change
        require_client_authentication=True,
    )


SCHEMES: Mapping[SchemeName, Callable[[ServiceSettings], Security]] = {
    "none": lambda _settings: NO_SECURITY,
    "mtls": mutual_tls,
}


def security_of(settings: ServiceSettings) -> Security:
    """Return the credentials that the settings name.

    Raises `SettingsError` when they cannot be read, and for plain text beyond this machine that is not allowed.
    """
    check_plaintext(settings)
    return replace(SCHEMES[settings.security](settings), kafka=kafka_security(settings))
