"""Plain text stays on this machine, unless the settings allow more."""

from ipaddress import ip_address

from shared.config import ServiceSettings
from shared.errors import SettingsError
from shared.log import get_logger


def check_plaintext(settings: ServiceSettings) -> None:
    """Raises `SettingsError` for connections in plain text beyond this machine; logs them where they are allowed."""
    found = plain_beyond(settings)
    if not found:
        return
    if not settings.allow_plaintext:
        raise SettingsError(
            f"{', '.join(found)}: plain text beyond this machine. Set PRFAAS_SECURITY=mtls"
            " (and PRFAAS_KAFKA_PROTOCOL for Kafka), or PRFAAS_ALLOW_PLAINTEXT=yes in a private network"
        )
    get_logger().warning("plaintext_allowed", connections=found)


def plain_beyond(settings: ServiceSettings) -> list[str]:
    """Return the settings by which prompts, KV or events would leave this machine in plain text."""
    found = []
    if settings.security == "none":
        hosts = {"PRFAAS_GRPC_HOST": settings.grpc_host, "PRFAAS_HTTP_HOST": settings.http_host}
        found += [f"{variable}={host}" for variable, host in hosts.items() if not is_loopback(host)]
    if not settings.kafka_protocol.endswith("ssl"):
        brokers = [server.strip().rpartition(":")[0].strip("[]") for server in settings.kafka.split(",")]
        found += [f"PRFAAS_KAFKA={settings.kafka}"] * (not all(map(is_loopback, brokers)))
    return found


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
