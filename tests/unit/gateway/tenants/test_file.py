"""The file of accounts: hashed keys, clear refusals, read again when it changes."""

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.gateway.tenants.account import TenantLimits
from services.gateway.tenants.file import (
    DIGEST_PREFIX,
    LOOK_EVERY_S,
    AccountsFile,
    digest_of,
    new_key,
    read_accounts,
    single_account,
)
from shared.errors import SettingsError

SECRET = "this is the secret of all the salts"
KEY = "pk-one"


def write(path: Path, tenants: str, secret: str = SECRET) -> Path:
    path.write_text(f'secret = "{secret}"\n{tenants}')
    return path


def tenant(name: str, key: str, rest: str = "") -> str:
    return f'[tenants.{name}]\nkeys = ["{digest_of(key)}"]\n{rest}\n'


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_leads_to_its_account(tmp_path: Path) -> None:
    rest = 'concurrent_requests = 2\ntokens_per_minute = 100\nleast_priority = 0\ngroups = ["docs"]\nobserver = true'
    path = write(tmp_path / "keys.toml", tenant("acme", KEY, rest) + tenant("other", "pk-two"))
    accounts = read_accounts(path)
    acme, other = accounts.of_key(KEY), accounts.of_key("pk-two")
    assert acme is not None
    assert other is not None
    assert acme.limits == TenantLimits(concurrent_requests=2, tokens_per_minute=100, least_priority=0)
    assert (acme.name, set(acme.groups), acme.is_observer, other.is_observer) == ("acme", {"docs"}, True, False)
    assert accounts.of_key("pk-onE") is None
    assert accounts.of_key("") is None
    assert len(accounts) == 2
    assert KEY not in path.read_text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "secret"),
        ('secret = "short"\n', "secret"),
        (f'secret = "{SECRET}"\n', "tenants"),
        (f'secret = "{SECRET}"\n[tenants.a]\nkeys = []\n', "tenants.a.keys"),
        (f'secret = "{SECRET}"\n[tenants.a]\nkeys = ["pk-in-the-clear"]\n', "tenants.a.keys.0"),
        (f'secret = "{SECRET}"\n{tenant("a", KEY, "tokens_per_minute = 0")}', "tenants.a.tokens_per_minute"),
        (f'secret = "{SECRET}"\n{tenant("a", KEY, "tokens_a_minute = 5")}', "tenants.a.tokens_a_minute"),
        (f'secret = "{SECRET}"\n{tenant("a", KEY)}{tenant("b", KEY)}', "tenants.b.keys"),
        ("secret = ", "not TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_the_field_and_quotes_no_secret(
    tmp_path: Path, text: str, told: str
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as refused:
        read_accounts(path)
    assert told in str(refused.value)
    assert SECRET not in str(refused.value)
    assert "pk-in-the-clear" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        AccountsFile(tmp_path / "none.toml")


def test_a_changed_file_is_read_within_a_second(tmp_path: Path) -> None:
    clock = Clock()
    path = write(tmp_path / "keys.toml", tenant("acme", KEY))
    file = AccountsFile(path, clock)
    write(path, tenant("acme", "pk-rotated"))
    assert file.current().of_key(KEY) is not None, "not looked at yet"
    clock.now += LOOK_EVERY_S
    assert file.current().of_key(KEY) is None
    assert file.current().of_key("pk-rotated") is not None


def test_a_file_that_breaks_locks_nobody_out_and_lets_nobody_in(tmp_path: Path) -> None:
    clock = Clock()
    path = write(tmp_path / "keys.toml", tenant("acme", KEY))
    file = AccountsFile(path, clock)
    path.write_text("[tenants")
    with capture_logs() as logs:
        for _ in range(3):
            clock.now += LOOK_EVERY_S
            assert file.current().of_key(KEY) is not None
        assert file.current().of_key("") is None
    assert [entry["event"] for entry in logs] == ["api_keys_unreadable"], "said once"
    os.unlink(path)
    clock.now += LOOK_EVERY_S
    assert file.current().of_key(KEY) is not None
    write(path, tenant("acme", "pk-new"))
    clock.now += LOOK_EVERY_S
    assert file.current().of_key("pk-new") is not None


def test_a_single_key_may_do_everything() -> None:
    account = single_account("pk-mine").of_key("pk-mine")
    assert account is not None
    assert account.is_observer
    assert account.limits == TenantLimits()
    other = single_account("pk-other").of_key("pk-other")
    assert other is not None
    assert other.salt("") != account.salt("")


def test_new_keys_are_long_and_differ() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert min(map(len, keys)) >= 45
    assert digest_of(new_key()).startswith(DIGEST_PREFIX)
