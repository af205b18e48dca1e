"""Plain text beyond this machine takes a setting."""

import pytest
from structlog.testing import capture_logs

from shared.config import ServiceSettings, load
from shared.errors import SettingsError
from shared.security.credentials import NO_SECURITY, security_of
from shared.security.plaintext import is_loopback, plain_beyond

ALLOWED = {"PRFAAS_ALLOW_PLAINTEXT": "yes"}
TLS_TO_KAFKA = {"PRFAAS_KAFKA_PROTOCOL": "sasl_ssl"}


def test_loopback() -> None:
    for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1"):
        assert is_loopback(host), host
    for host in ("0.0.0.0", "::", "10.0.0.1", "kafka", "", "localhost.example.com"):
        assert not is_loopback(host), host


@pytest.mark.parametrize(
    "environ",
    [
        {"PRFAAS_GRPC_HOST": "0.0.0.0"},
        {"PRFAAS_HTTP_HOST": "::"},
        {"PRFAAS_KAFKA": "127.0.0.1:9092,kafka:9092"},
    ],
)
def test_it_is_refused_and_allowed_by_name(environ: dict[str, str]) -> None:
    (variable,) = environ
    with pytest.raises(SettingsError, match=rf"{variable}=.*PRFAAS_ALLOW_PLAINTEXT=yes"):
        security_of(load(ServiceSettings, environ))
    with capture_logs() as logs:
        assert security_of(load(ServiceSettings, environ | ALLOWED)) == NO_SECURITY
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("plaintext_allowed", "warning")]


def test_what_is_encrypted_is_not_plain() -> None:
    everywhere = {"PRFAAS_GRPC_HOST": "0.0.0.0", "PRFAAS_HTTP_HOST": "0.0.0.0", "PRFAAS_KAFKA": "kafka:9092"}
    assert len(plain_beyond(load(ServiceSettings, everywhere))) == 3
    mtls = everywhere | {"PRFAAS_SECURITY": "mtls"}
    assert plain_beyond(load(ServiceSettings, mtls)) == ["PRFAAS_KAFKA=kafka:9092"]
    assert plain_beyond(load(ServiceSettings, mtls | TLS_TO_KAFKA)) == []


def test_on_this_machine_nothing_has_to_be_said() -> None:
    with capture_logs() as logs:
        assert security_of(load(ServiceSettings, {"PRFAAS_KAFKA": "[::1]:9092,localhost:9093"})) == NO_SECURITY
    assert not logs
