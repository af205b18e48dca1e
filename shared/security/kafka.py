"""How the clients of Kafka authenticate and encrypt. The brokers are another operator's: so are their certificates."""

import ssl
from dataclasses import dataclass, field
from typing import Literal, cast

from shared.config import SecuritySettings
from shared.errors import SettingsError
from shared.security.reloading import Reloading
from shared.security.sessions import LiveContext

KafkaProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]


@dataclass(frozen=True)
class KafkaSecurity:
    """The names are aiokafka's."""

    security_protocol: KafkaProtocol = "PLAINTEXT"
    ssl_context: ssl.SSLContext | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_plain_username: str | None = None
    sasl_plain_password: str | None = field(default=None, repr=False)


PLAIN_KAFKA = KafkaSecurity()


def kafka_security(settings: SecuritySettings) -> KafkaSecurity:
    """Return what the settings say. Raises `SettingsError` when files cannot be read or something is missing."""
    protocol = cast(KafkaProtocol, settings.kafka_protocol.upper())
    context = _context(settings) if protocol.endswith("SSL") else None
    if not protocol.startswith("SASL"):
        return KafkaSecurity(protocol, context)
    password = _password(settings)
    if not settings.kafka_user or not password:
        raise SettingsError(f"PRFAAS_KAFKA_PROTOCOL={settings.kafka_protocol}: a user name and a password must be set")
    return KafkaSecurity(protocol, context, settings.kafka_mechanism, settings.kafka_user, password)


def _password(settings: SecuritySettings) -> str:
    path = settings.kafka_password_file
    if path is None:
        return settings.kafka_password
    if settings.kafka_password:
        raise SettingsError("PRFAAS_KAFKA_SASL_PASSWORD, PRFAAS_KAFKA_SASL_PASSWORD_FILE: set one of them")
    try:
        return path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"PRFAAS_KAFKA_SASL_PASSWORD_FILE: {path} cannot be read: {error}") from None


def _context(settings: SecuritySettings) -> ssl.SSLContext:
    ca, cert, key = settings.kafka_ca, settings.kafka_cert, settings.kafka_key
    if (cert is None) != (key is None):
        raise SettingsError("PRFAAS_KAFKA_CERT, PRFAAS_KAFKA_KEY: set both, or none of them")

    def make() -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=ca)
            if cert is not None:
                context.load_cert_chain(cert, key)
        except (OSError, ValueError) as error:
            raise SettingsError(f"the files of PRFAAS_KAFKA_CA, _CERT, _KEY are of no use: {error}") from None
        return context

    paths = [path for path in (ca, cert, key) if path is not None]
    return LiveContext.of(ssl.PROTOCOL_TLS_CLIENT, Reloading(paths, make, what="Kafka").current)
