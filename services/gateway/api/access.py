"""Who may call what, and on whose account: the middleware that looks at keys, and what routes learn from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from services.gateway.request.generation import Prepared
from services.gateway.tenants.account import TenantAccount
from services.gateway.tenants.authentication import Authentication
from services.gateway.tenants.quota import Quotas
from shared.errors import BadRequest
from shared.tenant import Tenant

OPEN = frozenset({"/", "/docs", "/openapi.json", "/health", "/livez", "/readyz", "/metrics", "/version"})
OPEN_FOLDERS = ("/page/",)
"""What probes, scrapers and browsers fetch without a key: nothing of it tells what anybody asks."""

WATCHED = ("/v1/live", "/v1/requests", "/v1/plan")
"""What shows the doings of all."""


class Salted(Protocol):
    """A body whose blocks have a salt."""

    cache_salt: str | None
    cache_group: str | None


@dataclass(frozen=True)
class Asker:
    """Whoever has sent a request."""

    account: TenantAccount | None  # None: this gateway asks nobody for a key
    quotas: Quotas

    @property
    def tenant(self) -> Tenant | None:
        return None if self.account is None else self.account.tenant

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count the body as a request of the account. Raises `RateLimited`."""
        if self.account is None:
            yield
            return
        with self.quotas.admitted(self.account):
            yield

    def seal(self, body: Salted) -> None:
        """Put the salt that the account has for it in the place of what the client says.

        Raises `Forbidden`, and `BadRequest` where there are no accounts to share anything.
        """
        if self.account is not None:
            body.cache_salt, body.cache_group = self.account.salt(body.cache_salt or "", body.cache_group), None
        elif body.cache_group is not None:
            raise BadRequest("cache_group: this server has no accounts; use cache_salt", param="cache_group")

    def charged(self, prepared: Prepared, priority: int | None) -> Prepared:
        """Return a request on the account, its prompt counted. Raises `BadRequest` for a priority beyond its rights."""
        if self.account is None:
            return prepared
        self.account.check_priority(priority)
        self.spent(prepared.num_prompt_tokens)
        return prepared.on_account(self.account.tenant)

    def spent(self, num_tokens: int) -> None:
        """Count tokens."""
        if self.account is not None:
            self.quotas.spent(self.account, num_tokens)


_ASKER = web.RequestKey("asker", Asker)


def asker_of(request: web.Request) -> Asker:
    return request[_ASKER]


def access(authentication: Authentication | None) -> Middleware:
    """Return the middleware that lets a request pass, or raises `Unauthenticated` or `Forbidden`; it goes inside
    `envelope`. Without `authentication` everybody passes."""
    quotas = Quotas()

    @web.middleware
    async def handle(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[_ASKER] = Asker(_account(request, authentication), quotas)
        return await handler(request)

    return handle


def _account(request: web.Request, authentication: Authentication | None) -> TenantAccount | None:
    path = request.path
    if authentication is None or path in OPEN or path.startswith(OPEN_FOLDERS):
        return None
    header = request.headers.get("Authorization")
    if any(path == watched or path.startswith(f"{watched}/") for watched in WATCHED):
        return authentication.observer_of(header)
    return authentication.account_of(header)
