"""The pool's settings: defaults, sizes, and every problem at once."""

import pytest

from services.cachepool.settings import PoolSettings
from shared.config import load
from shared.errors import SettingsError


def test_defaults_and_sizes() -> None:
    assert load(PoolSettings, {}).pool_bytes == 1 << 30
    settings = load(PoolSettings, {"PRFAAS_POOL_BYTES": "512MiB", "PRFAAS_DC": "west"})
    assert (settings.pool_bytes, settings.worker_id) == (512 << 20, "cachepool-west")


def test_every_problem_is_named() -> None:
    names = ("PRFAAS_POOL_BYTES", "PRFAAS_POOL_MAX_STREAMS", "PRFAAS_POOL_MAX_LEASE_S")
    with pytest.raises(SettingsError) as caught:
        load(PoolSettings, dict.fromkeys(names, "-1"))
    assert all(name in str(caught.value) for name in names)
