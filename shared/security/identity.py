"""Who a process is: a role in a datacenter, as its certificate says it.

The identity is a SPIFFE ID, the certificate's one URI (X.509-SVID): `spiffe://prfaas/west/decode`. Servers read it
there. Clients have the handshake check a DNS name that only such a certificate has, whatever host they dial: gRPC tells
them nothing else of a server.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from shared.errors import PeerRefused

TRUST_DOMAIN = "prfaas"
DNS_DOMAIN = "prfaas.internal"
"""Below the domain that is reserved for private use: no public authority certifies a name in it."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ID = re.compile(rf"spiffe://{TRUST_DOMAIN}/({_LABEL.pattern})/([a-z]+)")


class ServiceRole(StrEnum):
    """What a process does. An operator is a person or a monitor: it calls servers and is none."""

    GATEWAY = "gateway"
    PREFILL = "prefill"
    DECODE = "decode"
    CACHEPOOL = "cachepool"
    OPERATOR = "operator"


@dataclass(frozen=True)
class Identity:
    """A role in a datacenter."""

    role: ServiceRole
    dc: str

    def __post_init__(self) -> None:
        if _LABEL.fullmatch(self.dc) is None:
            raise ValueError(f"the datacenter {self.dc!r} cannot be in a certificate: use a-z, 0-9 and hyphens")

    def __str__(self) -> str:
        return f"{self.role} of {self.dc}"

    @property
    def uri(self) -> str:
        return f"spiffe://{TRUST_DOMAIN}/{self.dc}/{self.role}"

    @property
    def dns_names(self) -> tuple[str, ...]:
        """The names that clients may ask for; none for who serves nothing."""
        if self.role is ServiceRole.OPERATOR:
            return ()
        return (server_name(), server_name(self.role), server_name(self.role, self.dc))


def server_name(role: ServiceRole | None = None, dc: str = "") -> str:
    """Return the name to check in a handshake: of any server of the suite, of a role, of a role in a datacenter."""
    if role is None:
        return DNS_DOMAIN
    return f"{role}.{dc}.{DNS_DOMAIN}" if dc else f"{role}.{DNS_DOMAIN}"


def identity_of_uris(uris: list[str]) -> Identity:
    """Return the identity in a certificate's URIs. Raises `PeerRefused` unless there is exactly one, of ours."""
    if len(uris) != 1:
        raise PeerRefused(f"its certificate has {len(uris)} URIs; one says who it is: spiffe://prfaas/<dc>/<role>")
    match = _ID.fullmatch(uris[0])
    if match is None or match[3] not in set(ServiceRole):
        raise PeerRefused(f"its certificate is of {uris[0][:200]}, no member of this suite")
    return Identity(ServiceRole(match[3]), match[1])


def identity_of_certificate(certificate: Mapping[str, Any] | None) -> Identity:
    """Return whose certificate it is, as `ssl` shows it. Raises `PeerRefused`, also when there is none."""
    if not certificate:
        raise PeerRefused("it showed no certificate")
    names = certificate.get("subjectAltName", ())
    return identity_of_uris([value for kind, value in names if kind == "URI"])
