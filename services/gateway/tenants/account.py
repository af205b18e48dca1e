"""One tenant's account: its part of the cache, its limits, its rights. Pure."""

import hashlib
import hmac
from dataclasses import dataclass, field

from shared.errors import BadRequest, Forbidden
from shared.tenant import Tenant, tenant_of

_OWN, _GROUP = b"prfaas.salt.tenant.v1", b"prfaas.salt.group.v1"


@dataclass(frozen=True)
class TenantLimits:
    """What an account may have and ask for; None: as much as it likes."""

    concurrent_requests: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # of prompts and answers
    least_priority: int | None = None  # lower goes first


@dataclass(frozen=True)
class TenantAccount:
    """Whoever has one of its keys acts for it.

    Salts follow from a secret, the account's name and what the client says, by HMAC-SHA256 (RFC 2104): nobody gets at
    another account's blocks by naming its salt, and the same salt in two accounts is two salts.
    """

    name: str
    secret: bytes = field(repr=False)
    limits: TenantLimits = TenantLimits()
    groups: frozenset[str] = frozenset()  # whose blocks it may share
    is_observer: bool = False  # whether it sees what all do: live state, timelines, plans, usage

    @property
    def tenant(self) -> Tenant:
        """On whose account blocks are stored and turns are taken, whatever salt a request has."""
        return tenant_of(self.salt(""))

    def salt(self, cache_salt: str, group: str | None = None) -> str:
        """Return the salt of a request's blocks: its own, or that of a group whose members share them.

        Raises `Forbidden` when the account does not belong to the group.
        """
        if group is None:
            return _keyed(self.secret, _OWN, self.name, cache_salt)
        if group not in self.groups:
            raise Forbidden(f"cache_group: this key does not belong to the group {group[:64]!r}", param="cache_group")
        return _keyed(self.secret, _GROUP, group, cache_salt)

    def check_priority(self, priority: int | None) -> None:
        """Raise `BadRequest` when a request asks to be more urgent than the account may be."""
        least = self.limits.least_priority
        if least is not None and (priority or 0) < least:
            raise BadRequest(f"priority: this key may ask for {least} or more; lower goes first", param="priority")


def _keyed(secret: bytes, domain: bytes, owner: str, salt: str) -> str:
    name = owner.encode()
    message = domain + len(name).to_bytes(4, "little") + name + salt.encode(errors="surrogatepass")
    return hmac.new(secret, message, hashlib.sha256).hexdigest()
