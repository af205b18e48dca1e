"""Settings from the environment."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from shared.config import ServiceSettings, describe, fraction, load, parse_bytes, positive, setting
from shared.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class PoolSettings(ServiceSettings):
    service: ClassVar[str] = "cachepool"

    budget_bytes: int = setting("T_BUDGET", 1 << 20, help="memory for blocks", parse=parse_bytes, check=positive)
    peers: tuple[str, ...] = setting("T_PEERS", (), help="addresses of peers")
    low: float = setting("T_LOW", 0.5, check=fraction)
    high: float = setting("T_HIGH", 0.9, check=fraction)
    codec: Literal["raw", "lz4"] = setting("T_CODEC", "raw")
    spill: Path | None = setting("T_SPILL", None)
    verify: bool = setting("T_VERIFY", True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise ValueError("T_LOW must not exceed T_HIGH")


@dataclass(frozen=True, kw_only=True)
class Needy(ServiceSettings):
    token: str = setting("T_TOKEN", help="shared secret")


def test_defaults_and_what_follows_from_them() -> None:
    settings = load(PoolSettings, {})
    assert settings == PoolSettings()
    assert settings.worker_id == "cachepool-local"
    assert settings.advertise_host == settings.grpc_host == "127.0.0.1"
    assert load(PoolSettings, {"PRFAAS_DC": "west"}).worker_id == "cachepool-west"
    assert load(PoolSettings, {"PRFAAS_WORKER_ID": "p1", "PRFAAS_DC": "west"}).worker_id == "p1"


def test_a_wildcard_address_is_not_advertised() -> None:
    assert load(PoolSettings, {"PRFAAS_GRPC_HOST": "0.0.0.0"}).advertise_host not in ("", "0.0.0.0")
    assert load(PoolSettings, {"PRFAAS_GRPC_HOST": "0.0.0.0", "PRFAAS_ADVERTISE_HOST": "pool"}).advertise_host == "pool"


def test_every_type_is_read() -> None:
    settings = load(
        PoolSettings,
        {
            "T_BUDGET": "512 MiB",
            "T_PEERS": "a:1, b:2,",
            "T_LOW": "0.25",
            "T_CODEC": "lz4",
            "T_SPILL": "~/spill",
            "T_VERIFY": "Off",
            "PRFAAS_GRPC_PORT": " 7101 ",
            "PRFAAS_DRAIN_S": "",  # as compose files leave it: unset
        },
    )
    assert settings.budget_bytes == 512 << 20
    assert settings.peers == ("a:1", "b:2")
    assert settings.low == 0.25
    assert settings.codec == "lz4"
    assert settings.spill == Path.home() / "spill"
    assert settings.verify is False
    assert settings.grpc_port == 7101
    assert settings.drain_s == 5.0


def test_all_problems_are_reported_at_once() -> None:
    environ = {
        "PRFAAS_GRPC_PORT": "99999",
        "PRFAAS_HTTP_PORT": "http",
        "PRFAAS_DRAIN_S": "nan",
        "PRFAAS_LOG_LEVEL": "loud",
        "T_BUDGET": "12 parsecs",
        "T_VERIFY": "maybe",
    }
    with pytest.raises(SettingsError) as raised:
        load(PoolSettings, environ)
    lines = str(raised.value).splitlines()
    assert {line.partition(":")[0] for line in lines} == set(environ)
    assert "PRFAAS_LOG_LEVEL: must be one of debug, info, warning, error (got 'loud')" in lines


def test_a_required_setting_says_what_it_is_for() -> None:
    with pytest.raises(SettingsError, match=r"T_TOKEN: must be set \(shared secret\)"):
        load(Needy, {"T_TOKEN": "  "})
    assert load(Needy, {"T_TOKEN": "x"}).token == "x"


def test_rules_between_settings_are_problems_too() -> None:
    with pytest.raises(SettingsError, match="T_LOW must not exceed T_HIGH"):
        load(PoolSettings, {"T_LOW": "1.0"})


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("0", 0), ("4096", 4096), ("1KiB", 1024), ("1.5 GiB", 3 << 29), ("2GB", 2_000_000_000), ("3m", 3_000_000)],
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "MiB", "-1KiB", "1 1 KiB", "1XB", "inf", "nan", "1e400"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError):
        parse_bytes(text)


def test_describe_lists_every_setting_once() -> None:
    lines = describe(PoolSettings).splitlines()
    names = [line.split()[0] for line in lines[1:]]
    assert len(names) == len(set(names)) == len(fields(PoolSettings))
    assert any(line.startswith("T_BUDGET") and line.endswith("memory for blocks") for line in lines)
    assert "(required)" in describe(Needy)
