"""How tools on this machine speak to a suite that may be encrypted: PRFAAS_SECURITY says so to them too."""

import ssl
from collections.abc import Mapping
from pathlib import Path

from deploy.up.environment import RUN

CERTS = RUN / "certs"
"""Where certificates of `prfaas up` lie unless PRFAAS_CERTS names another folder."""


def is_encrypted(environ: Mapping[str, str]) -> bool:
    return environ.get("PRFAAS_SECURITY") == "mtls"


def reached(url: str, environ: Mapping[str, str]) -> str:
    """Return how a URL of the suite is reached: by https where all of it is encrypted."""
    return f"https{url.removeprefix('http')}" if is_encrypted(environ) and url.startswith("http:") else url


def trust(environ: Mapping[str, str]) -> ssl.SSLContext:
    """Return whom to trust: the suite's authority beside the system's; shown is an operator's certificate, if any.

    Raises `OSError` when the files cannot be read.
    """
    context = ssl.create_default_context()
    if not is_encrypted(environ):
        return context
    folder = Path(environ.get("PRFAAS_CERTS") or CERTS)
    context.load_verify_locations(environ.get("PRFAAS_TLS_CA") or folder / "ca.pem")
    for cert in sorted(folder.glob("operator-*.pem"))[:1]:
        context.load_cert_chain(cert, cert.with_suffix(".key"))
    return context
