"""Compiling: once per machine, and a clear reason where it cannot be done."""

from pathlib import Path

import pytest

from shared.model.native import build
from shared.model.native.build import load_library
from shared.native import KernelsUnavailable


@pytest.fixture(autouse=True)
def _nothing_loaded() -> None:
    load_library.cache_clear()


def test_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_FLAGS", tuple("-O0" if flag == "-O3" else flag for flag in build._FLAGS))  # 20 s less
    load_library(tmp_path)
    (library,) = (tmp_path / "native").glob("*.so")
    stamp = library.stat().st_mtime_ns
    load_library.cache_clear()
    load_library(tmp_path)
    assert library.stat().st_mtime_ns == stamp


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelsUnavailable, match="no C compiler"):
        load_library(tmp_path)


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_FLAGS", ("--no-such-flag",))
    with pytest.raises(KernelsUnavailable, match="no-such-flag"):
        load_library(tmp_path)
    assert not list((tmp_path / "native").glob("*.so*[!k]"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(KernelsUnavailable, match=str(blocked)):
        load_library(blocked)
