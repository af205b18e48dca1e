"""Who a certificate says that its holder is, and what it may say."""

import pytest

from shared.errors import PeerRefused
from shared.security.identity import Identity, ServiceRole, identity_of_certificate, identity_of_uris, server_name

DECODE = Identity(ServiceRole.DECODE, "us-west-2")


def test_an_identity_is_read_from_the_one_uri() -> None:
    assert DECODE.uri == "spiffe://prfaas/us-west-2/decode"
    assert identity_of_uris([DECODE.uri]) == DECODE
    shown = {"subjectAltName": (("DNS", "localhost"), ("URI", DECODE.uri))}
    assert identity_of_certificate(shown) == DECODE


@pytest.mark.parametrize(
    ("uris", "told"),
    [
        ([], "0 URIs"),
        (["spiffe://prfaas/west/decode", "spiffe://prfaas/west/cachepool"], "2 URIs"),
        (["spiffe://others/west/decode"], "no member"),
        (["spiffe://prfaas/west/root"], "no member"),
        (["spiffe://prfaas/west/decode/more"], "no member"),
        (["spiffe://prfaas/WEST/decode"], "no member"),
        (["https://prfaas/west/decode"], "no member"),
    ],
)
def test_anything_else_is_nobody(uris: list[str], told: str) -> None:
    with pytest.raises(PeerRefused, match=told):
        identity_of_uris(uris)


@pytest.mark.parametrize("shown", [None, {}])
def test_no_certificate(shown: dict[str, object] | None) -> None:
    with pytest.raises(PeerRefused, match="no certificate"):
        identity_of_certificate(shown)


@pytest.mark.parametrize("dc", ["", "West", "a.b", "a/b", "-a", "a" * 64, "a\n"])
def test_a_datacenter_is_a_label(dc: str) -> None:
    with pytest.raises(ValueError, match="cannot be in a certificate"):
        Identity(ServiceRole.DECODE, dc)


def test_servers_have_names_for_what_clients_know_of_them_and_operators_have_none() -> None:
    assert server_name() in DECODE.dns_names
    assert server_name(ServiceRole.DECODE) in DECODE.dns_names
    assert server_name(ServiceRole.DECODE, "us-west-2") in DECODE.dns_names
    assert server_name(ServiceRole.DECODE, "east") not in DECODE.dns_names
    assert server_name(ServiceRole.CACHEPOOL) not in DECODE.dns_names
    assert Identity(ServiceRole.OPERATOR, "west").dns_names == ()
