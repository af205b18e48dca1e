"""Which role may call what: the one table of rights.

A right holds for callers of the same datacenter only, or of any. What the table does not name is forbidden. Health
and reflection are not in it: they are open to whoever has a certificate of the suite's authority.
"""

from collections.abc import Mapping
from enum import Enum

from shared.errors import PeerRefused
from shared.security.identity import Identity, ServiceRole


class Reach(Enum):
    """Where a caller may be."""

    SAME_DC = "of the same datacenter"
    ANY_DC = "of any datacenter"


_ENGINES_AT_HOME = {ServiceRole.PREFILL: Reach.SAME_DC, ServiceRole.DECODE: Reach.SAME_DC}
_POOLS = {ServiceRole.CACHEPOOL: Reach.ANY_DC}
_GATEWAYS = {ServiceRole.GATEWAY: Reach.ANY_DC}

SERVERS: Mapping[str, ServiceRole] = {
    "prfaas.v1.Prefill": ServiceRole.PREFILL,
    "prfaas.v1.Decode": ServiceRole.DECODE,
    "prfaas.v1.CachePool": ServiceRole.CACHEPOOL,
}
"""Which role serves a gRPC service: what clients expect at the other end."""

CALLS: Mapping[str, Mapping[ServiceRole, Reach]] = {
    "/prfaas.v1.Prefill/Prefill": _GATEWAYS,
    "/prfaas.v1.Decode/Generate": _GATEWAYS,
    "/prfaas.v1.CachePool/Publish": _ENGINES_AT_HOME,
    "/prfaas.v1.CachePool/Fetch": {**_ENGINES_AT_HOME, **_POOLS},
    "/prfaas.v1.CachePool/Lookup": {**_ENGINES_AT_HOME, **_POOLS, **_GATEWAYS},
    "/prfaas.v1.CachePool/Lanes": {**_ENGINES_AT_HOME, **_POOLS},
    "/prfaas.v1.CachePool/Pin": _GATEWAYS,
    "/prfaas.v1.CachePool/Unpin": _GATEWAYS,
    "/prfaas.v1.CachePool/Snapshot": _GATEWAYS,
    "/prfaas.v1.CachePool/Probe": _POOLS,
}
LANE: Mapping[ServiceRole, Reach] = CALLS["/prfaas.v1.CachePool/Lanes"]
"""Who may open a link to a pool: whoever is told of it."""


def check_right(caller: Identity, server: Identity, rights: Mapping[ServiceRole, Reach], what: str) -> None:
    """Raises `PeerRefused` unless the caller has the right at this server."""
    reach = rights.get(caller.role)
    if reach is None:
        raise PeerRefused(f"a {caller} may not {what} at the {server}")
    if reach is Reach.SAME_DC and caller.dc != server.dc:
        raise PeerRefused(f"a {caller} may not {what} at the {server}: that takes one {reach.value}")
