"""From an `Authorization` header to the account that a request acts for."""

from collections.abc import Callable
from pathlib import Path

from services.gateway.settings import GatewaySettings
from services.gateway.tenants.account import TenantAccount
from services.gateway.tenants.file import Accounts, AccountsFile, single_account
from shared.errors import Forbidden, SettingsError, Unauthenticated
from shared.log import get_logger
from shared.security.plaintext import is_loopback

log = get_logger()

MAX_KEY_CHARS = 512


class Authentication:
    """`accounts` returns those that there are now."""

    def __init__(self, accounts: Callable[[], Accounts]) -> None:
        self._accounts = accounts

    def account_of(self, authorization: str | None) -> TenantAccount:
        """Raises `Unauthenticated`. The message does not say whether a key is nearly right."""
        scheme, _, key = (authorization or "").strip().partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated("this server wants an API key: send the header Authorization: Bearer KEY")
        account = self._accounts().of_key(key) if len(key) <= MAX_KEY_CHARS else None
        if account is None:
            raise Unauthenticated("this API key is not known here")
        return account

    def observer_of(self, authorization: str | None) -> TenantAccount:
        """Return the account of somebody who may see what all do. Raises `Unauthenticated`, `Forbidden`."""
        account = self.account_of(authorization)
        if not account.is_observer:
            raise Forbidden("this key may not see what others do; its tenant is no observer")
        return account


def authentication_of(settings: GatewaySettings) -> Authentication | None:
    """Return what looks at keys; None where nobody needs one.

    Raises `SettingsError` when the file of keys cannot be read, and when the gateway would serve everybody who reaches
    it over a network without having been told to.
    """
    if settings.api_keys and settings.api_key:
        raise SettingsError("PRFAAS_API_KEYS, PRFAAS_API_KEY: give one of them")
    if settings.api_keys:
        return Authentication(AccountsFile(Path(settings.api_keys).expanduser()).current)
    if settings.api_key:
        accounts = single_account(settings.api_key)
        return Authentication(lambda: accounts)
    if not (is_loopback(settings.http_host) or settings.allow_anonymous):
        raise SettingsError(
            f"PRFAAS_HTTP_HOST: {settings.http_host} can be reached from elsewhere, and nobody needs a key: "
            "set PRFAAS_API_KEYS, or PRFAAS_ALLOW_ANONYMOUS=yes on a private network"
        )
    log.warning("open_to_everybody", host=settings.http_host, consequence="whoever reaches this gateway may use it")
    return None
