"""The file of accounts: TOML, keys hashed, read again when it has changed."""

import hashlib
import secrets
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.gateway.tenants.account import TenantAccount, TenantLimits
from shared.errors import SettingsError
from shared.log import get_logger

log = get_logger()

KEY_PREFIX = "pk-"
DIGEST_PREFIX = "sha256:"
LOOK_EVERY_S = 1.0

_DIGEST = rf"^{DIGEST_PREFIX}[0-9a-f]{{64}}$"
_Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


class _Tenant(_Strict):
    keys: Annotated[list[Annotated[str, Field(pattern=_DIGEST)]], Field(min_length=1)]
    concurrent_requests: _Count | None = None
    requests_per_minute: _Count | None = None
    tokens_per_minute: _Count | None = None
    least_priority: int | None = None
    groups: list[Annotated[str, Field(min_length=1, max_length=256)]] = []
    observer: bool = False


class _File(_Strict):
    secret: Annotated[str, Field(min_length=32)]
    tenants: Annotated[dict[str, _Tenant], Field(min_length=1)]


class Accounts:
    """Accounts by the digest of a key. A key is random and long, so that one SHA-256 of it is enough."""

    def __init__(self, by_digest: Mapping[str, TenantAccount]) -> None:
        self._by_digest = by_digest

    def of_key(self, key: str) -> TenantAccount | None:
        return self._by_digest.get(digest_of(key))

    def __len__(self) -> int:
        return len({account.name for account in self._by_digest.values()})


class AccountsFile:
    """Looks at the file at most once in `LOOK_EVERY_S`. One that has become unreadable leaves the accounts as they are:
    a slip of an editor locks nobody out, and lets nobody in."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `SettingsError` when there are no accounts to begin with."""
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        self._version = _version_of(path)
        self._accounts = read_accounts(path)

    def current(self) -> Accounts:
        """Return the accounts as of at most a second ago."""
        now = self._clock()
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self._look()
        return self._accounts

    def _look(self) -> None:
        version = _version_of(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._accounts = read_accounts(self._path)
        except SettingsError as error:
            log.error("api_keys_unreadable", path=str(self._path), error=str(error), consequence="the old ones stay")
        else:
            log.info("api_keys_read", path=str(self._path), num_tenants=len(self._accounts))


def read_accounts(path: Path) -> Accounts:
    """Read a file of accounts. Raises `SettingsError` that names the field, and quotes neither keys nor the secret."""
    try:
        found = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise SettingsError(f"PRFAAS_API_KEYS: {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise SettingsError(f"PRFAAS_API_KEYS: {path} is not TOML") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise SettingsError(f"PRFAAS_API_KEYS: {path}: {place}: {first['msg'].lower()}") from None
    by_digest: dict[str, TenantAccount] = {}
    for name, tenant in found.tenants.items():
        account = _account(name, tenant, found.secret.encode())
        for digest in tenant.keys:
            if digest in by_digest:
                raise SettingsError(f"PRFAAS_API_KEYS: {path}: tenants.{name}.keys: {digest[:15]}… is there twice")
            by_digest[digest] = account
    return Accounts(by_digest)


def single_account(key: str) -> Accounts:
    """Return the one account of a key that was given by itself: it may do everything. Its salts follow from the key."""
    secret = hashlib.sha256(b"prfaas.secret.v1" + key.encode()).digest()
    return Accounts({digest_of(key): TenantAccount("default", secret, is_observer=True)})


def new_key() -> str:
    """Return a key of 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """Return what the file has in place of a key."""
    return DIGEST_PREFIX + hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def _account(name: str, tenant: _Tenant, secret: bytes) -> TenantAccount:
    limits = TenantLimits(
        concurrent_requests=tenant.concurrent_requests,
        requests_per_minute=tenant.requests_per_minute,
        tokens_per_minute=tenant.tokens_per_minute,
        least_priority=tenant.least_priority,
    )
    return TenantAccount(name, secret, limits, frozenset(tenant.groups), tenant.observer)


def _version_of(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
