"""An authority and what it signs, as PEM. No files, no clock of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.cli.failure import CommandFailed
from shared.errors import PeerRefused
from shared.security.identity import DNS_DOMAIN, Identity, identity_of_uris

CLOCKS_DIFFER = timedelta(minutes=5)
"""A certificate is valid from so long before it was made: machines do not agree on the time."""


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key, PEM."""

    cert: bytes
    key: bytes = field(repr=False)


def new_authority(now: datetime, days: int) -> KeyPair:
    """Return an authority that signs certificates of members, and no other authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _named(f"PrfaaS authority {now:%Y-%m-%d %H:%M:%S}")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = (
        _builder(name, name, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return _signed(builder, key, key)


def new_member(authority: KeyPair, member: Identity, hosts: Sequence[str], now: datetime, days: int) -> KeyPair:
    """Return a certificate of a member for `hosts`: names and addresses by which HTTP clients reach it.

    It ends with the authority at the latest. Raises `CommandFailed` when the authority's files are of no use.
    """
    issuer, signing_key = _opened(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    public = x509.SubjectKeyIdentifier.from_public_key(issuer.public_key())
    builder = (
        _builder(_named(f"{member.role}.{member.dc}"), issuer.subject, key.public_key(), now, days, issuer)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(_names(member, hosts)), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(public), critical=False)
    )
    return _signed(builder, key, signing_key)


@dataclass(frozen=True)
class Shown:
    """What a certificate says."""

    identity: Identity | None  # None: an authority
    hosts: tuple[str, ...]
    not_after: datetime
    is_of_key: bool  # its public key is that of a key at hand


def shown(cert: bytes, key: bytes | None) -> Shown:
    """Read a certificate. Raises `ValueError` when it is none, or no member of a suite."""
    certificate = x509.load_pem_x509_certificate(cert)
    identity: Identity | None = None
    hosts: tuple[str, ...] = ()
    if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        try:
            identity = identity_of_uris(names.get_values_for_type(x509.UniformResourceIdentifier))
        except PeerRefused as error:
            raise ValueError(str(error)) from None
        dns = [name for name in names.get_values_for_type(x509.DNSName) if not name.endswith(DNS_DOMAIN)]
        hosts = (*dns, *map(str, names.get_values_for_type(x509.IPAddress)))
    is_of_key = key is not None and load_pem_private_key(key, None).public_key() == certificate.public_key()
    return Shown(identity, hosts, certificate.not_valid_after_utc, is_of_key)


def _opened(authority: KeyPair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(authority.cert)
        key = load_pem_private_key(authority.key, None)
    except (ValueError, TypeError) as error:
        raise CommandFailed(f"the authority cannot be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise CommandFailed("ca.key is not the key of the first certificate in ca.pem")
    return certificate, key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
    within: x509.Certificate | None = None,
) -> x509.CertificateBuilder:
    ends = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(ends if within is None else min(ends, within.not_valid_after_utc))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _names(member: Identity, hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(member.uri)]
    names += [x509.DNSName(name) for name in member.dns_names]
    for host in hosts:
        try:
            names.append(x509.IPAddress(ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(**allowed: bool) -> x509.KeyUsage:
    uses = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{use: allowed.get(use, False) for use in uses})


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signing_key: ec.EllipticCurvePrivateKey
) -> KeyPair:
    certificate = builder.sign(signing_key, hashes.SHA256())
    return KeyPair(
        certificate.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
