"""What every test may rely on: an environment without the caller's PRFAAS_* settings."""

import os

import pytest


@pytest.fixture(autouse=True)
def no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PRFAAS_")]:
        monkeypatch.delenv(name)
