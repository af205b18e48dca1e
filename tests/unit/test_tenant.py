"""Tenants follow from salts, and tell nothing about them."""

from shared.tenant import NO_TENANT, tenant_of


def test_equal_salts_are_one_tenant_and_different_ones_are_two() -> None:
    assert tenant_of("a") == tenant_of("a") != tenant_of("b")


def test_requests_without_a_salt_have_the_empty_tenant() -> None:
    assert tenant_of("") == NO_TENANT == ""


def test_a_tenant_does_not_show_its_salt_and_stays_the_same_over_versions() -> None:
    assert tenant_of("secret") == "02d62788ee21a587c1a8aaaddf402e0a"
