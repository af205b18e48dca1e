"""Who may talk to whom, and how it is encrypted: one answer from the settings, for all kinds of connection.

Each place that opens or takes connections is handed its part and passes it on to its library: gRPC servers
(`rpc/server`), gRPC channels (`rpc/client`), HTTP servers (`service/http`), both ends of socket lanes
(`lanes/sockets`) and the clients of Kafka (`bus/connection`).
A scheme is added as one function in `SCHEMES`.
"""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import grpc

from shared.config import ServiceSettings

SchemeName: TypeAlias = Literal["none"]


@dataclass(frozen=True)
class KafkaSecurity:
    """How the clients of Kafka authenticate and encrypt; the names are aiokafka's."""

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ssl_context: ssl.SSLContext | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_plain_username: str | None = None
    sasl_plain_password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Security:
    """The credentials of one process. None stands for a connection in plain text that everybody may open."""

    grpc_server: grpc.ServerCredentials | None = None
    grpc_channel: grpc.ChannelCredentials | None = None
    http_server: ssl.SSLContext | None = None
    lane_server: ssl.SSLContext | None = None
    lane_client: ssl.SSLContext | None = None
    kafka: KafkaSecurity = KafkaSecurity()


NO_SECURITY = Security()

SCHEMES: Mapping[SchemeName, Callable[[ServiceSettings], Security]] = {
    "none": lambda _settings: NO_SECURITY,
}


def security_of(settings: ServiceSettings) -> Security:
    """Return the credentials that the settings name. Raises `SettingsError` when they cannot be read."""
    return SCHEMES[settings.security](settings)
