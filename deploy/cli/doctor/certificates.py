"""Whether the certificates of the processes that start here are good, and for how long."""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

from deploy.cli.doctor.finding import Finding, failed, fine, warned
from shared.config import ServiceSettings, load
from shared.errors import SettingsError
from shared.security.files import Certificate, check_own, files_of, read_certificate, utc
from shared.security.identity import Identity, ServiceRole

SOON_S = 14 * 86_400
WHAT = "certificates"

_SERVICE = re.compile(r"\bservices\.(gateway|prefill|decode|cachepool)\b")
_DC = re.compile(r"\bPRFAAS_DC=(\S+)")


def certificates(commands: Mapping[str, str], environ: Mapping[str, str]) -> Finding:
    """Check the certificate of each process of a Procfile; without any, that settings and files fit is all."""
    if environ.get("PRFAAS_SECURITY") != "mtls":
        return fine(WHAT, "none are used: PRFAAS_SECURITY is none")
    settings = load(ServiceSettings, environ)
    problems: list[str] = []
    warnings: list[str] = []
    ends = []
    for member in sorted(members(commands), key=str):
        try:
            certificate = checked(settings, member)
        except SettingsError as error:
            problems.append(f"{member}: {error}")
            continue
        ends.append(certificate.not_after)
        warnings += doubts(settings, member, certificate)
    if problems:
        return failed(WHAT, "; ".join(problems), "`prfaas certs show` shows them, `renew` and `issue` make new ones")
    if warnings:
        return warned(WHAT, "; ".join(warnings), "`prfaas certs renew` makes new ones, which running processes take")
    good = f"{len(ends)} are good" + (f"; the first expires at {utc(min(ends))}" if ends else "")
    return fine(WHAT, good)


def members(commands: Mapping[str, str]) -> Iterator[Identity]:
    """Yield who starts. Raises `SettingsError` when a datacenter has a name that cannot be in a certificate."""
    found = set()
    for command in commands.values():
        if (service := _SERVICE.search(command)) is not None:
            dc = _DC.search(command)
            try:
                found.add(Identity(ServiceRole(service[1]), dc[1] if dc else "local"))
            except ValueError as error:
                raise SettingsError(f"PRFAAS_DC: {error}") from None
    yield from found


def checked(settings: ServiceSettings, member: Identity) -> Certificate:
    """Return a member's certificate. Raises `SettingsError` when the member could not start with it."""
    files = files_of(replace(settings, dc=member.dc), str(member.role))
    certificate = read_certificate(files)
    check_own(certificate, member, files.cert)
    return certificate


def doubts(settings: ServiceSettings, member: Identity, certificate: Certificate) -> Iterator[str]:
    """Yield what is not well with a certificate that can be used."""
    key = files_of(replace(settings, dc=member.dc), str(member.role)).key
    if certificate.not_after - time.time() < SOON_S:
        yield f"that of the {member} expires at {utc(certificate.not_after)}"
    if key.stat().st_mode & 0o077:
        yield f"others may read {key}: chmod 600 it"
