"""Compiling C: once per machine, and a clear reason where it cannot be done."""

from pathlib import Path

import pytest

from shared.native import KernelsUnavailable, load_native

FLAGS = ("-O1",)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }")
    return path


def test_compiled_once(source: Path, tmp_path: Path) -> None:
    assert load_native("answer", [source], FLAGS, tmp_path).answer() == 42
    (library,) = (tmp_path / "native").glob("answer-*.so")
    stamp = library.stat().st_mtime_ns
    load_native("answer", [source], FLAGS, tmp_path)
    assert library.stat().st_mtime_ns == stamp


def test_a_changed_source_is_compiled_anew(source: Path, tmp_path: Path) -> None:
    load_native("answer", [source], FLAGS, tmp_path)
    source.write_text("int answer(void) { return 43; }")
    assert load_native("answer", [source], FLAGS, tmp_path).answer() == 43


def test_no_compiler(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelsUnavailable, match="no C compiler"):
        load_native("answer", [source], FLAGS, tmp_path)


def test_a_compiler_that_fails_is_quoted(source: Path, tmp_path: Path) -> None:
    with pytest.raises(KernelsUnavailable, match="no-such-flag"):
        load_native("answer", [source], ("--no-such-flag",), tmp_path)
    assert not list((tmp_path / "native").glob("*.so*[!k]"))


def test_a_cache_that_cannot_be_written_is_named(source: Path) -> None:
    with pytest.raises(KernelsUnavailable, match=str(source)):
        load_native("answer", [source], FLAGS, source)
