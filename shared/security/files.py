"""The files of a process's certificate: where they lie, and whether they fit together."""

import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path

from shared.config import ServiceSettings
from shared.errors import PeerRefused, SettingsError
from shared.security.identity import Identity, identity_of_certificate

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which `ssl.VerifyFlags` does not name
_ROUNDS = 16


@dataclass(frozen=True)
class CertificateFiles:
    """Paths in PEM: trusted authorities, the own certificate with its chain, the own private key."""

    ca: Path
    cert: Path
    key: Path

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        return (self.ca, self.cert, self.key)


@dataclass(frozen=True)
class Certificate:
    """A certificate that fits its key and its authorities, and whose it is."""

    identity: Identity
    not_before: float  # seconds since 1970
    not_after: float
    ca_pem: bytes
    chain_pem: bytes
    key_pem: bytes = field(repr=False)

    def __str__(self) -> str:
        ending = "expired" if time.time() > self.not_after else "expires"
        return f"the certificate of a {self.identity}, which {ending} at {utc(self.not_after)}"


def files_of(settings: ServiceSettings, service: str = "") -> CertificateFiles:
    """Return where the settings say that the files are. Raises `SettingsError` when they do not.

    `service`: whose, if it is not that of the settings.
    """
    folder, name = settings.certs, f"{service or settings.service}-{settings.dc}"
    found = {
        "PRFAAS_TLS_CA": settings.tls_ca or (folder and folder / "ca.pem"),
        "PRFAAS_TLS_CERT": settings.tls_cert or (folder and folder / f"{name}.pem"),
        "PRFAAS_TLS_KEY": settings.tls_key or (folder and folder / f"{name}.key"),
    }
    if absent := [variable for variable, path in found.items() if path is None]:
        raise SettingsError(f"PRFAAS_SECURITY=mtls: set PRFAAS_CERTS, or {', '.join(absent)}")
    ca, cert, key = (path for path in found.values() if path is not None)
    return CertificateFiles(ca, cert, key)


def read_certificate(files: CertificateFiles) -> Certificate:
    """Return the certificate. Whether its time has come or is over is not checked. Raises `SettingsError`."""
    contents = []
    for path in files.paths:
        try:
            contents.append(path.read_bytes())
        except OSError as error:
            raise SettingsError(f"{path} cannot be read: {error.strerror}; `prfaas certs` makes such files") from None
    shown = _shown_by(files)
    try:
        identity = identity_of_certificate(shown)
    except PeerRefused as error:
        raise SettingsError(f"{files.cert}: {error}") from None
    not_before, not_after = (ssl.cert_time_to_seconds(str(shown[name])) for name in ("notBefore", "notAfter"))
    ca_pem, chain_pem, key_pem = contents
    return Certificate(identity, not_before, not_after, ca_pem, chain_pem, key_pem)


def check_own(certificate: Certificate, expected: Identity, path: Path, now: float | None = None) -> None:
    """Raises `SettingsError` if a certificate is another process's, is not valid yet, or not any more."""
    now = time.time() if now is None else now
    if certificate.identity != expected:
        raise SettingsError(f"{path} is the certificate of a {certificate.identity}; this process is a {expected}")
    if now > certificate.not_after:
        raise SettingsError(f"{path} expired at {utc(certificate.not_after)}: `prfaas certs renew` makes a new one")
    if now < certificate.not_before:
        raise SettingsError(f"{path} is not valid before {utc(certificate.not_before)}: look at this machine's clock")


def utc(seconds: float) -> str:
    """Return a time as people write it."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _shown_by(files: CertificateFiles) -> dict[str, object]:
    """Return what a peer that trusts the authorities would be shown: by a handshake with ourselves, in memory.

    `ssl` has no other way to look into a certificate of one's own.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        server.load_cert_chain(files.cert, files.key)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{files.cert} and {files.key} are no pair of certificate and key: {error}") from None
    client.check_hostname = False
    client.verify_flags |= _NO_CHECK_TIME
    try:
        client.load_verify_locations(files.ca)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{files.ca} holds no certificates of authorities: {error}") from None
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)]
    try:
        for end in ends * _ROUNDS:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    except ssl.SSLError as error:
        told = getattr(error, "verify_message", None) or error.reason or str(error)
        raise SettingsError(f"{files.cert} is not accepted by who trusts {files.ca}: {told}") from None
    return dict(ends[0].getpeercert() or {})
