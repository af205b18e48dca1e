"""Quotas: requests at a time, and what a minute holds."""

from contextlib import ExitStack
from dataclasses import replace

import pytest

from services.gateway.tenants.account import TenantAccount, TenantLimits
from services.gateway.tenants.quota import MinuteBucket, Quotas
from shared.errors import RateLimited

ACCOUNT = TenantAccount("acme", b"s" * 32)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def limited(**limits: int) -> TenantAccount:
    return replace(ACCOUNT, limits=TenantLimits(**limits))


def test_requests_at_a_time_are_counted_until_they_end() -> None:
    quotas, account = Quotas(Clock()), limited(concurrent_requests=2)
    with ExitStack() as running:
        running.enter_context(quotas.admitted(account))
        with pytest.raises(ZeroDivisionError), quotas.admitted(account):
            raise ZeroDivisionError
        running.enter_context(quotas.admitted(account))
        with pytest.raises(RateLimited), quotas.admitted(account):
            pass
        with quotas.admitted(replace(account, name="another")):
            pass
    with quotas.admitted(account):
        pass


def test_a_minute_holds_so_many_requests_and_says_when_the_next_one_may_come() -> None:
    clock = Clock()
    quotas, account = Quotas(clock), limited(requests_per_minute=6)
    for _ in range(6):
        with quotas.admitted(account):
            pass
    with pytest.raises(RateLimited) as refused, quotas.admitted(account):
        pass
    assert refused.value.retry_after_s == pytest.approx(10.0)
    assert refused.value.http_status == 429
    clock.now += 10.0
    with quotas.admitted(account):
        pass
    with pytest.raises(RateLimited), quotas.admitted(account):
        pass


def test_tokens_that_were_spent_beyond_the_limit_are_waited_for() -> None:
    clock = Clock()
    quotas, account = Quotas(clock), limited(tokens_per_minute=600)
    with quotas.admitted(account):
        quotas.spent(account, 1_199)
    with pytest.raises(RateLimited) as refused, quotas.admitted(account):
        pass
    assert refused.value.retry_after_s == pytest.approx(60.0)
    clock.now += 60.0
    with quotas.admitted(account):
        pass


def test_an_account_without_limits_is_never_refused() -> None:
    quotas = Quotas(Clock())
    with ExitStack() as running:
        for _ in range(100):
            running.enter_context(quotas.admitted(ACCOUNT))
            quotas.spent(ACCOUNT, 10**9)


def test_a_limit_that_changes_keeps_what_was_used() -> None:
    clock = Clock()
    bucket = MinuteBucket(100, clock.now)
    bucket.take(90, clock.now)
    bucket.resize(50, clock.now)
    assert bucket.wait_s(clock.now) == pytest.approx((1 + 40) * 60 / 50)
    bucket.resize(1_000, clock.now)
    assert bucket.wait_s(clock.now) == 0
    quotas = Quotas(clock)
    with quotas.admitted(limited(requests_per_minute=1)):
        pass
    with quotas.admitted(ACCOUNT):
        pass
