"""How much of what it may an account has used: requests at a time, requests and tokens a minute."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services.gateway.tenants.account import TenantAccount
from shared.errors import RateLimited

MINUTE_S = 60.0


class MinuteBucket:
    """A token bucket that holds a minute's worth. What is taken may leave it in debt: who asks next waits."""

    def __init__(self, per_minute: int, now: float) -> None:
        self._per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def wait_s(self, now: float) -> float:
        """Return how long it takes until something may be taken."""
        self._fill(now)
        return max(0.0, (1.0 - self._level) * MINUTE_S / self._per_minute)

    def take(self, amount: float, now: float) -> None:
        self._fill(now)
        self._level -= amount

    def resize(self, per_minute: int, now: float) -> None:
        """Take another rate from now on; what was used stays used."""
        self._fill(now)
        used = self._per_minute - self._level
        self._per_minute, self._level = per_minute, per_minute - used

    def _fill(self, now: float) -> None:
        self._level = min(float(self._per_minute), self._level + (now - self._at) * self._per_minute / MINUTE_S)
        self._at = now


class _Used:
    """One account's use."""

    def __init__(self) -> None:
        self.num_running = 0
        self.requests: MinuteBucket | None = None
        self.tokens: MinuteBucket | None = None


class Quotas:
    """What this gateway has seen of each account; another gateway counts for itself. As many entries as accounts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used: dict[str, _Used] = {}

    @contextmanager
    def admitted(self, account: TenantAccount) -> Iterator[None]:
        """Count the body as a request of the account. Raises `RateLimited` with the time after which to ask again."""
        used, limits, now = self._used.setdefault(account.name, _Used()), account.limits, self._clock()
        used.requests = _sized(used.requests, limits.requests_per_minute, now)
        used.tokens = _sized(used.tokens, limits.tokens_per_minute, now)
        if limits.concurrent_requests is not None and used.num_running >= limits.concurrent_requests:
            raise RateLimited(f"{limits.concurrent_requests} requests of this key's tenant are running already")
        for bucket, what in ((used.requests, "requests"), (used.tokens, "tokens")):
            if bucket is not None and (wait_s := bucket.wait_s(now)) > 0:
                raise RateLimited(f"this key's tenant has used up its {what} of this minute", retry_after_s=wait_s)
        if used.requests is not None:
            used.requests.take(1, now)
        used.num_running += 1
        try:
            yield
        finally:
            used.num_running -= 1

    def spent(self, account: TenantAccount, num_tokens: int) -> None:
        """Count tokens of a prompt or an answer. A request that runs is not ended for them."""
        used = self._used.get(account.name)
        if used is not None and used.tokens is not None:
            used.tokens.take(num_tokens, self._clock())


def _sized(bucket: MinuteBucket | None, per_minute: int | None, now: float) -> MinuteBucket | None:
    """Return the bucket of a limit that may be new, another one or gone since the last request."""
    if per_minute is None:
        return None
    if bucket is None:
        return MinuteBucket(per_minute, now)
    bucket.resize(per_minute, now)
    return bucket
