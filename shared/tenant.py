"""On whose account something is stored: the tenant of a request, and how it follows from the request's salt."""

import hashlib
from typing import NewType

Tenant = NewType("Tenant", str)
"""A type of its own: a salt is a text too, and a secret, which must never be stored or sent where a tenant is meant."""

NO_TENANT = Tenant("")
"""The tenant of all requests without a salt. It has a quota like any other."""

_DOMAIN = b"prfaas.tenant.v1"
_CHARS = 32


def tenant_of(salt: str) -> Tenant:
    """Return whose quota a request with this salt counts against. Salts are secrets: pools learn a hash only."""
    return Tenant(hashlib.sha256(_DOMAIN + salt.encode()).hexdigest()[:_CHARS]) if salt else NO_TENANT
