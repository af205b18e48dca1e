"""What every test may rely on: no PRFAAS_* settings of the caller's, threads that do not spin, examples that recur."""

import os

import pytest
from hypothesis import HealthCheck, settings

# Read when torch is loaded. Workers and suites share the cores: a thread of OpenMP that spins while it waits for one
# that was pushed aside makes seconds of milliseconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# By default an example may take 200 ms and must be drawn quickly: that would be a test of the machine.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("explore"), derandomize=True)
settings.load_profile("same")  # `pytest --hypothesis-profile=explore` looks for new examples


@pytest.fixture(autouse=True)
def no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PRFAAS_")]:
        monkeypatch.delenv(name)
