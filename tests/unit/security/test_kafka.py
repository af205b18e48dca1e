"""What the settings say of Kafka reaches its clients, and its password nobody else."""

import ssl
from pathlib import Path

import pytest

from shared.config import ServiceSettings, load
from shared.errors import SettingsError
from shared.security.identity import ServiceRole
from shared.security.kafka import PLAIN_KAFKA, kafka_security
from shared.security.reloading import CHECK_S
from tests.support.certificates import SuiteAuthority

PASSWORD = "correct-horse"
SASL = {"PRFAAS_KAFKA_PROTOCOL": "sasl_plaintext", "PRFAAS_KAFKA_SASL_USERNAME": "suite"}


def of(**environ: str) -> ServiceSettings:
    return load(ServiceSettings, environ)


def test_by_default_nothing() -> None:
    assert kafka_security(of()) == PLAIN_KAFKA


def test_sasl_with_a_password_from_the_environment_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD + "\n")
    mechanism = {"PRFAAS_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512"}
    named = kafka_security(of(**SASL, **mechanism, PRFAAS_KAFKA_SASL_PASSWORD=PASSWORD))
    filed = kafka_security(of(**SASL, **mechanism, PRFAAS_KAFKA_SASL_PASSWORD_FILE=str(tmp_path / "password")))
    assert named == filed
    assert (named.security_protocol, named.sasl_mechanism) == ("SASL_PLAINTEXT", "SCRAM-SHA-512")
    assert (named.sasl_plain_username, named.sasl_plain_password) == ("suite", PASSWORD)


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        (SASL, "a user name and a password"),
        ({**SASL, "PRFAAS_KAFKA_SASL_PASSWORD_FILE": "/nowhere"}, "/nowhere cannot be read"),
        (
            {**SASL, "PRFAAS_KAFKA_SASL_PASSWORD_FILE": "/nowhere", "PRFAAS_KAFKA_SASL_PASSWORD": PASSWORD},
            "set one of them",
        ),
        ({"PRFAAS_KAFKA_PROTOCOL": "ssl", "PRFAAS_KAFKA_CERT": "/nowhere"}, "set both"),
        ({"PRFAAS_KAFKA_PROTOCOL": "ssl", "PRFAAS_KAFKA_CA": "/nowhere"}, "of no use"),
    ],
)
def test_what_is_missing_is_named_and_the_password_is_not(environ: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsError, match=told) as raised:
        kafka_security(of(**environ))
    assert PASSWORD not in str(raised.value)


def test_passwords_are_not_shown() -> None:
    settings = of(**SASL, PRFAAS_KAFKA_SASL_PASSWORD=PASSWORD)
    assert PASSWORD not in repr(settings)
    assert PASSWORD not in repr(kafka_security(settings))


def test_a_bad_value_beside_a_secret_shows_only_itself() -> None:
    with pytest.raises(SettingsError, match="'9x9'") as raised:
        of(PRFAAS_KAFKA_SASL_PASSWORD=PASSWORD, PRFAAS_GRPC_PORT="9x9")
    assert PASSWORD not in str(raised.value)


def test_certificates_for_brokers_are_taken_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = SuiteAuthority(tmp_path)
    files = authority.issue(ServiceRole.DECODE, "west")
    settings = of(
        PRFAAS_KAFKA_PROTOCOL="ssl",
        PRFAAS_KAFKA_CA=str(files.ca),
        PRFAAS_KAFKA_CERT=str(files.cert),
        PRFAAS_KAFKA_KEY=str(files.key),
    )
    monkeypatch.setattr("shared.security.reloading.CHECK_S", 0.0)
    context = kafka_security(settings).ssl_context
    assert context is not None
    assert CHECK_S > 0

    def session_of() -> ssl.SSLContext:
        return context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="broker").context

    first = session_of()
    assert first.verify_mode is ssl.CERT_REQUIRED
    assert session_of() is first
    authority.issue(ServiceRole.DECODE, "west")
    assert session_of() is not first
