"""Authorities and certificates for tests: of members, of strangers, and of those whose time is over."""

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc

from deploy.cli.certs.authority import KeyPair, new_authority, new_member
from deploy.cli.certs.command import make_absent
from deploy.cli.certs.folder import CertificateFolder
from shared.config import ServiceSettings, load
from shared.security.channels import ChannelTls
from shared.security.credentials import Security, security_of
from shared.security.files import CertificateFiles, read_certificate
from shared.security.identity import Identity, ServiceRole
from shared.security.refusals import Refusals
from shared.security.sessions import probe_context

DAYS = 90


def settings_of(role: ServiceRole, dc: str, folder: Path, **environ: str) -> ServiceSettings:
    """Return the settings of a process that finds its certificate in a folder."""
    cls = type("Settings", (ServiceSettings,), {"service": str(role)})
    settings: ServiceSettings = load(
        cls, {"PRFAAS_SECURITY": "mtls", "PRFAAS_CERTS": str(folder), "PRFAAS_DC": dc, **environ}
    )
    return settings


def encrypted(folder: Path, dcs: Sequence[str] = ("east", "west")) -> dict[str, str]:
    """Make certificates for a suite; return the settings that use them."""
    made = CertificateFolder(folder / "certs")
    make_absent(made, list(dcs), (), DAYS)
    return {"PRFAAS_SECURITY": "mtls", "PRFAAS_CERTS": str(made.path)}


class SuiteAuthority:
    """An authority whose certificates lie in a folder, as `prfaas certs` lays them out."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.pair = new_authority(datetime.now(UTC), 365)
        (folder / "ca.pem").write_bytes(self.pair.cert)

    def member(
        self, role: ServiceRole, dc: str, hosts: Sequence[str] = ("localhost", "127.0.0.1"), *, days_ago: int = 0
    ) -> KeyPair:
        """Return a member's certificate, made some days ago for `DAYS`."""
        made_at = datetime.now(UTC) - timedelta(days=days_ago)
        return new_member(self.pair, Identity(role, dc), hosts, made_at, DAYS)

    def issue(self, role: ServiceRole, dc: str, *, days_ago: int = 0) -> CertificateFiles:
        """Write a member's files, over those that are there."""
        pair, name = self.member(role, dc, days_ago=days_ago), f"{role}-{dc}"
        files = CertificateFiles(self.folder / "ca.pem", self.folder / f"{name}.pem", self.folder / f"{name}.key")
        for path, data in ((files.key, pair.key), (files.cert, pair.cert)):
            fresh = path.with_suffix(".new")
            fresh.write_bytes(data)
            fresh.replace(path)
        return files

    def security(self, role: ServiceRole, dc: str) -> Security:
        """Return what a process of that role is handed, which has a certificate from now on."""
        self.issue(role, dc)
        return security_of(settings_of(role, dc, self.folder))

    def channel_tls(self, files: CertificateFiles, refusals: Refusals | None = None) -> ChannelTls:
        """Return the client's side of channels with whatever certificate, also one that no service would start with."""
        refusals = refusals or Refusals()
        made = grpc.ssl_channel_credentials(*(path.read_bytes() for path in (files.ca, files.key, files.cert)))
        context = probe_context(files)
        return ChannelTls(lambda: made, context, refusals, lambda: str(read_certificate(files)))

    def trusting(self, files: CertificateFiles | None = None) -> ssl.SSLContext:
        """Return the context of an HTTP client that trusts this authority, and shows a certificate or none."""
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        if files is not None:
            context.load_cert_chain(files.cert, files.key)
        return context
