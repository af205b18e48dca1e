"""What is wrong with a process's certificate is said before it starts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shared.errors import SettingsError
from shared.security.credentials import security_of
from shared.security.files import check_own, files_of, read_certificate
from shared.security.identity import Identity, ServiceRole
from tests.support.certificates import DAYS, SuiteAuthority, settings_of

DECODE = ServiceRole.DECODE


@pytest.fixture
def authority(tmp_path: Path) -> SuiteAuthority:
    return SuiteAuthority(tmp_path / "certs")


def test_a_certificate_is_read_with_its_identity_and_times(authority: SuiteAuthority) -> None:
    certificate = read_certificate(authority.issue(DECODE, "west"))
    assert certificate.identity == Identity(DECODE, "west")
    assert DAYS * 86_400 <= certificate.not_after - certificate.not_before <= DAYS * 86_400 + 600
    assert "PRIVATE KEY" not in repr(certificate)


def test_an_expired_one_is_read_all_the_same_and_refused_by_name(authority: SuiteAuthority) -> None:
    files = authority.issue(DECODE, "west", days_ago=DAYS + 1)
    certificate = read_certificate(files)
    with pytest.raises(SettingsError, match=r"decode-west\.pem expired at 20.*UTC: `prfaas certs renew`"):
        check_own(certificate, Identity(DECODE, "west"), files.cert)
    with pytest.raises(SettingsError, match="not valid before"):
        check_own(certificate, Identity(DECODE, "west"), files.cert, now=certificate.not_before - 1)


def wrong_key(authority: SuiteAuthority) -> str:
    (authority.folder / "decode-west.key").write_bytes(authority.member(DECODE, "west").key)
    return "no pair of certificate and key"


def other_authority(authority: SuiteAuthority) -> str:
    other = SuiteAuthority(authority.folder / "other")
    (authority.folder / "ca.pem").write_bytes(other.pair.cert)
    return r"not accepted by who trusts .*ca\.pem"


def no_authority(authority: SuiteAuthority) -> str:
    (authority.folder / "ca.pem").write_text("nothing")
    return "holds no certificates of authorities"


def absent(authority: SuiteAuthority) -> str:
    (authority.folder / "decode-west.pem").unlink()
    return "cannot be read: No such file"


def of_another(authority: SuiteAuthority) -> str:
    pair = authority.member(ServiceRole.PREFILL, "west")
    (authority.folder / "decode-west.pem").write_bytes(pair.cert)
    (authority.folder / "decode-west.key").write_bytes(pair.key)
    return "is the certificate of a prefill of west; this process is a decode of west"


@pytest.mark.parametrize("spoil", [wrong_key, other_authority, no_authority, absent, of_another])
def test_each_mistake_has_its_message(authority: SuiteAuthority, spoil: Callable[[SuiteAuthority], str]) -> None:
    authority.issue(DECODE, "west")
    told = spoil(authority)
    with pytest.raises(SettingsError, match=told):
        security_of(settings_of(DECODE, "west", authority.folder))


def test_files_may_be_named_one_by_one(authority: SuiteAuthority) -> None:
    settings = settings_of(DECODE, "west", authority.folder, PRFAAS_TLS_KEY="/run/secrets/tls.key")
    assert files_of(settings).key == Path("/run/secrets/tls.key")
    assert files_of(settings).cert == authority.folder / "decode-west.pem"
    with pytest.raises(SettingsError, match="set PRFAAS_CERTS, or PRFAAS_TLS_CA, PRFAAS_TLS_CERT"):
        files_of(replace(settings, certs=None))


def test_a_datacenter_whose_name_cannot_be_in_a_certificate(authority: SuiteAuthority) -> None:
    with pytest.raises(SettingsError, match="PRFAAS_DC: the datacenter 'West' cannot be in a certificate"):
        security_of(settings_of(DECODE, "West", authority.folder))
