"""Each check of the machine, made to fail for real where a test can."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy.cli.doctor import machine
from deploy.cli.doctor.finding import Finding, Level


def assert_told(finding: Finding, level: Level, why: str, todo: str) -> None:
    assert finding.level is level, finding
    assert why in finding.why
    assert todo in finding.todo


def test_an_old_python() -> None:
    assert machine.python().level is Level.OK
    assert_told(machine.python((3, 10, 2)), Level.FAIL, "this is Python 3.10.2", "install 3.11 or newer")


def test_packages_that_are_not_installed_are_named_with_their_extras() -> None:
    assert machine.packages().level is Level.OK
    finding = machine.packages({"no_such_module": "gateway", "nor_this_one": "engine", "torch": "engine"})
    assert_told(finding, Level.FAIL, "not installed: no_such_module, nor_this_one", "'prfaas[engine,gateway]'")


def test_without_a_compiler_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_told(machine.compiler(), Level.WARN, "looked for cc, gcc, clang", "install one")
    (tmp_path / "gcc").write_text("#!/bin/sh\n")
    (tmp_path / "gcc").chmod(0o755)
    assert machine.compiler() == Finding(Level.OK, "compiler", str(tmp_path / "gcc"))


def test_memory_that_this_machine_does_not_have() -> None:
    total = psutil.virtual_memory().total
    assert_told(machine.memory(2 * total, 3, 2), Level.FAIL, "3 engines and 2 pools may take", "PRFAAS_KV_BYTES")
    assert machine.memory(1 << 20, 3, 2).level is Level.OK


def test_memory_that_others_have_taken_is_a_warning_unless_the_suite_is_the_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = psutil.virtual_memory()._replace(available=1 << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: used)
    monkeypatch.setattr(machine, "CGROUP_LIMITS", ())
    assert_told(machine.memory(2 << 30, 1, 1), Level.WARN, "1.0 GiB is free", "end what else takes memory")
    assert machine.memory(2 << 30, 1, 1, is_running=True).level is Level.OK


@pytest.mark.parametrize(("text", "limit"), [("1048576\n", 1 << 20), ("max\n", None)])
def test_a_container_has_the_memory_of_its_control_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, limit: int | None
) -> None:
    (tmp_path / "memory.max").write_text(text)
    monkeypatch.setattr(machine, "CGROUP_LIMITS", (tmp_path / "none", tmp_path / "memory.max"))
    assert machine.memory_limit() == (limit or psutil.virtual_memory().total)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = Path(tempfile.mkdtemp())
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        folder.rmdir()
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def test_a_disk_that_is_too_small(small_disk: Path) -> None:
    finding = machine.disk(small_disk / "not/yet", 8 << 30, "objects of 2 pools", "set it lower")
    assert_told(finding, Level.WARN, f"may take 8.0 GiB; {small_disk} has 0.0 GiB free", "set it lower")
    assert machine.disk(small_disk, 1000, "objects", "set it lower").level is Level.OK


def test_the_room_of_a_disk_is_what_its_file_system_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = os.statvfs_result((4096, 4096, 100, 50, 10, 1, 1, 1, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: few)
    assert machine.disk(tmp_path, 10 * 4096, "objects", "less").level is Level.OK
    assert machine.disk(tmp_path, 10 * 4096 + 1, "objects", "less").level is Level.WARN


def test_a_folder_of_sockets_that_others_may_enter(tmp_path: Path) -> None:
    folder = tmp_path / "lanes"
    assert machine.shared_memory(folder).level is Level.OK
    assert not folder.exists(), "a check leaves nothing behind"
    folder.mkdir(mode=0o755)
    assert_told(machine.shared_memory(folder), Level.FAIL, "must be this user's", "PRFAAS_POOL_LANE_FOLDER")
    folder.chmod(0o700)
    assert machine.shared_memory(folder).level is Level.OK


def test_a_system_without_anonymous_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert_told(machine.shared_memory(tmp_path / "lanes"), Level.WARN, "no sealed anonymous files", "Linux")
