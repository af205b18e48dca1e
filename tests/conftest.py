"""What every test may rely on: an environment without the caller's PRFAAS_* settings, threads that do not spin."""

import os

import pytest

# Read when torch is loaded. Workers and suites share the cores: a thread of OpenMP that spins while it waits for one
# that was pushed aside makes seconds of milliseconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True)
def no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PRFAAS_")]:
        monkeypatch.delenv(name)
