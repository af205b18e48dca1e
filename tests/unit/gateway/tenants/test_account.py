"""Accounts: salts that nobody can name for another, and rights."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.tenants.account import TenantAccount, TenantLimits
from shared.errors import BadRequest, Forbidden

SECRET = b"s" * 32
ACME, OTHER = TenantAccount("acme", SECRET), TenantAccount("other", SECRET)


@given(st.text(), st.text(), st.text(), st.text())
def test_salts_are_equal_only_for_the_same_tenant_and_the_same_words(a: str, b: str, one: str, two: str) -> None:
    equal = TenantAccount(a, SECRET).salt(one) == TenantAccount(b, SECRET).salt(two)
    assert equal == ((a, one) == (b, two))


def test_a_client_that_names_anothers_salt_gets_one_of_its_own() -> None:
    assert ACME.salt(OTHER.salt("")) not in {OTHER.salt(""), ACME.salt("")}
    assert TenantAccount("acme", b"t" * 32).salt("") != ACME.salt(""), "it takes the secret"


def test_the_tenant_is_one_whatever_salt_a_request_has() -> None:
    assert ACME.tenant != OTHER.tenant
    assert SECRET.decode() not in ACME.tenant
    assert ACME.tenant == TenantAccount("acme", SECRET, TenantLimits(requests_per_minute=1)).tenant


def test_members_of_a_group_share_a_salt_and_nobody_else_has_it() -> None:
    docs = frozenset({"docs"})
    one, two = TenantAccount("one", SECRET, groups=docs), TenantAccount("two", SECRET, groups=docs)
    assert one.salt("v1", "docs") == two.salt("v1", "docs") != one.salt("v2", "docs")
    assert one.salt("v1", "docs") != TenantAccount("docs", SECRET).salt("v1"), "a tenant of the group's name"
    with pytest.raises(Forbidden) as refused:
        ACME.salt("v1", "docs")
    assert refused.value.param == "cache_group"


def test_a_priority_has_a_ceiling() -> None:
    modest = TenantAccount("modest", SECRET, TenantLimits(least_priority=0))
    modest.check_priority(None)
    modest.check_priority(3)
    with pytest.raises(BadRequest) as refused:
        modest.check_priority(-1)
    assert refused.value.param == "priority"
    ACME.check_priority(-1000)
    with pytest.raises(BadRequest):
        TenantAccount("late", SECRET, TenantLimits(least_priority=5)).check_priority(None)


def test_the_secret_is_in_no_text_of_an_account() -> None:
    assert SECRET.decode() not in repr(ACME)
