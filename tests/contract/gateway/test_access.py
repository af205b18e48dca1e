"""API keys over HTTP: who is let in, whose blocks are whose, and what a tenant may use."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.gateway.settings import GatewaySettings
from services.gateway.tenants.authentication import authentication_of
from services.gateway.tenants.file import digest_of
from shared.errors import SettingsError
from tests.support.gateway import ScriptedSuite, running_suite, says

SECRET = "a secret of the test, from which salts follow"
KEYS = {"acme": "pk-acme", "other": "pk-other", "slow": "pk-slow", "watch": "pk-watch"}
LIMITS = {
    "acme": 'groups = ["docs"]',
    "other": 'groups = ["docs"]',
    "slow": "concurrent_requests = 1\nrequests_per_minute = 3\nleast_priority = 0",
    "watch": "observer = true",
}
TEXT = "You are a helpful assistant who answers briefly and never lies to anybody. " * 2


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    tenants = "".join(f'[tenants.{name}]\nkeys = ["{digest_of(key)}"]\n{LIMITS[name]}\n' for name, key in KEYS.items())
    path = tmp_path / "keys.toml"
    path.write_text(f'secret = "{SECRET}"\n{tenants}')
    return path


@pytest.fixture
async def suite(tmp_path: Path, keys_file: Path) -> AsyncIterator[ScriptedSuite]:
    async with running_suite(tmp_path, api_keys=str(keys_file)) as suite:
        yield suite


async def ask(
    suite: ScriptedSuite, key: str | None, status: int = 200, path: str = "/v1/completions", **body: Any
) -> dict[str, Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with suite.client.post(path, json={"prompt": TEXT, **body}, headers=headers) as response:
        assert response.status == status, await response.text()
        answer: dict[str, Any] = await response.json()
        return {**answer, "headers": dict(response.headers)}


async def get(suite: ScriptedSuite, path: str, key: str | None = None) -> int:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with suite.client.get(path, headers=headers) as response:
        return response.status


async def salts(suite: ScriptedSuite, key: str, **body: Any) -> tuple[str, str]:
    """Return the salt and the tenant with which decode was asked."""
    await ask(suite, key, **body)
    start = suite.decode.calls[-1].request
    return start.salt, start.tenant


def rotate(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(digest_of(old), digest_of(new)))


async def test_nobody_is_served_without_a_key(suite: ScriptedSuite) -> None:
    for key in (None, "pk-acm", "pk-acmee", ""):
        refused = await ask(suite, key, 401)
        assert refused["error"]["code"] == "invalid_api_key"
        assert refused["error"]["type"] == "authentication_error"
        assert refused["headers"]["WWW-Authenticate"] == "Bearer"
    assert suite.decode.calls == []
    await ask(suite, KEYS["acme"])


async def test_keys_guard_the_api_and_let_probes_and_the_page_pass(suite: ScriptedSuite) -> None:
    for path in ("/health", "/livez", "/metrics", "/version", "/", "/page/main.js"):
        assert await get(suite, path) != 401, path
    for path in ("/v1/models", "/v1/prefixes", "/v1/plan", "/v1/requests", "/v1/live", "/v1/nothing", "/nothing"):
        assert await get(suite, path) == 401, path
    assert await get(suite, "/v1/models", KEYS["acme"]) == 200


async def test_what_all_do_is_for_observers(suite: ScriptedSuite) -> None:
    for path in ("/v1/requests", "/v1/plan", "/v1/requests/some-id/timeline"):
        assert await get(suite, path, KEYS["acme"]) == 403
        assert await get(suite, path, KEYS["watch"]) in (200, 404)


async def test_tenants_have_salts_of_their_own_whatever_they_say(suite: ScriptedSuite) -> None:
    acme, other = await salts(suite, KEYS["acme"]), await salts(suite, KEYS["other"])
    assert acme != other
    assert acme == await salts(suite, KEYS["acme"])
    stolen = await salts(suite, KEYS["other"], cache_salt=acme[0])
    assert stolen[0] not in (acme[0], other[0])
    assert stolen[1] == other[1], "another salt is no other tenant"
    assert SECRET not in "".join((*acme, *other, *stolen))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}]}),
        ("/v1/responses", {"input": TEXT}),
    ],
)
async def test_every_endpoint_that_generates_has_the_tenants_salt(
    suite: ScriptedSuite, path: str, body: dict[str, Any]
) -> None:
    expected = await salts(suite, KEYS["acme"], cache_salt="mine")
    headers = {"Authorization": f"Bearer {KEYS['acme']}"}
    async with suite.client.post(path, json={**body, "cache_salt": "mine"}, headers=headers) as response:
        assert response.status == 200, await response.text()
    start = suite.decode.calls[-1].request
    assert (start.salt, start.tenant) == expected


async def test_members_of_a_group_can_share_and_others_are_refused(suite: ScriptedSuite) -> None:
    acme = await salts(suite, KEYS["acme"], cache_group="docs")
    other = await salts(suite, KEYS["other"], cache_group="docs")
    assert acme[0] == other[0]
    assert acme[1] != other[1], "each pays for what it stores"
    refused = await ask(suite, KEYS["watch"], 403, cache_group="docs")
    assert refused["error"]["param"] == "cache_group"


async def test_a_group_without_accounts_is_refused(tmp_path: Path) -> None:
    async with running_suite(tmp_path) as suite:
        assert (await ask(suite, None, 400, cache_group="docs"))["error"]["param"] == "cache_group"


async def test_limits_are_a_tenants_own_and_say_when_to_ask_again(suite: ScriptedSuite) -> None:
    answered = asyncio.Event()

    async def slowly(*args: Any) -> AsyncIterator[Any]:
        await answered.wait()
        async for message in says("done")(*args):
            yield message

    suite.decode.behave = slowly
    first = asyncio.create_task(ask(suite, KEYS["slow"]))
    await suite.decode.called.wait()
    refused = await ask(suite, KEYS["slow"], 429)
    assert refused["error"]["code"] == "rate_limit_exceeded"
    answered.set()
    await first
    await ask(suite, KEYS["slow"])
    await ask(suite, KEYS["slow"])
    refused = await ask(suite, KEYS["slow"], 429)
    assert 0 < int(refused["headers"]["Retry-After"]) <= 20
    await ask(suite, KEYS["acme"])


async def test_a_priority_beyond_a_tenants_rights_is_refused(suite: ScriptedSuite) -> None:
    assert (await ask(suite, KEYS["slow"], 400, priority=-1))["error"]["param"] == "priority"
    await ask(suite, KEYS["acme"], priority=-1)


async def test_a_key_that_is_taken_out_of_the_file_is_refused_soon(suite: ScriptedSuite, keys_file: Path) -> None:
    await ask(suite, KEYS["acme"])
    rotate(keys_file, KEYS["acme"], "pk-rotated")
    await asyncio.sleep(1.1)
    await ask(suite, KEYS["acme"], 401)
    await ask(suite, "pk-rotated")


async def test_one_key_by_itself_may_do_everything(tmp_path: Path) -> None:
    async with running_suite(tmp_path, api_key="pk-mine") as suite:
        await ask(suite, None, 401)
        await ask(suite, "pk-mine")
        assert await get(suite, "/v1/requests", "pk-mine") == 200


async def test_no_key_and_no_secret_is_logged(
    suite: ScriptedSuite, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    await ask(suite, KEYS["acme"])
    await ask(suite, "pk-wrong-key", 401)
    written = caplog.text + "".join(capfd.readouterr())
    for secret in (SECRET, *KEYS.values(), "pk-wrong-key"):
        assert secret not in written
    assert SECRET not in str(suite.decode.calls[-1].request)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "gateway"])
def test_an_open_gateway_on_a_network_is_refused_unless_it_is_meant(host: str) -> None:
    with pytest.raises(SettingsError, match="PRFAAS_ALLOW_ANONYMOUS"):
        authentication_of(GatewaySettings(http_host=host))
    assert authentication_of(GatewaySettings(http_host=host, allow_anonymous=True)) is None
    assert authentication_of(GatewaySettings(http_host=host, api_key="pk-mine")) is not None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.9.1"])
def test_on_loopback_it_is_open(host: str) -> None:
    assert authentication_of(GatewaySettings(http_host=host)) is None


def test_settings_do_not_show_the_key() -> None:
    assert "pk-mine" not in repr(GatewaySettings(api_key="pk-mine"))


def test_two_ways_to_give_keys_are_one_too_many(keys_file: Path) -> None:
    with pytest.raises(SettingsError, match="one of them"):
        authentication_of(GatewaySettings(api_keys=str(keys_file), api_key="pk-mine"))
