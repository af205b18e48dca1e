"""From a header to an account."""

import pytest

from services.gateway.tenants.account import TenantAccount
from services.gateway.tenants.authentication import MAX_KEY_CHARS, Authentication
from services.gateway.tenants.file import Accounts, digest_of
from shared.errors import Forbidden, Unauthenticated

ACME = TenantAccount("acme", b"s" * 32)
WATCHER = TenantAccount("watcher", b"s" * 32, is_observer=True)
ACCOUNTS = Accounts({digest_of("pk-acme"): ACME, digest_of("pk-watch"): WATCHER, digest_of("k" * 600): ACME})


def authentication() -> Authentication:
    return Authentication(lambda: ACCOUNTS)


@pytest.mark.parametrize("header", ["Bearer pk-acme", "bearer pk-acme", "BEARER   pk-acme  "])
def test_a_key_is_known_however_its_scheme_is_written(header: str) -> None:
    assert authentication().account_of(header) is ACME


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "pk-acme", "Basic pk-acme", "Bearer pk-acm", "Bearer \ud800", "Bearer é"]
)
def test_whatever_else_is_refused(header: str | None) -> None:
    with pytest.raises(Unauthenticated) as refused:
        authentication().account_of(header)
    assert "pk-acm" not in str(refused.value)
    assert refused.value.http_status == 401


def test_a_key_of_absurd_length_is_not_hashed() -> None:
    assert MAX_KEY_CHARS < 600
    with pytest.raises(Unauthenticated):
        authentication().account_of("Bearer " + "k" * 600)


def test_only_observers_see_what_all_do() -> None:
    assert authentication().observer_of("Bearer pk-watch") is WATCHER
    with pytest.raises(Forbidden):
        authentication().observer_of("Bearer pk-acme")
