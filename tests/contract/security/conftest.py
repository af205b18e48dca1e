"""A suite's authority, and files that are looked at whenever they are asked for."""

from pathlib import Path

import pytest

from tests.support.certificates import SuiteAuthority


@pytest.fixture
def authority(tmp_path: Path) -> SuiteAuthority:
    return SuiteAuthority(tmp_path / "certs")


@pytest.fixture(autouse=True)
def _always_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.security.reloading.CHECK_S", 0.0)
