"""Sockets lie in a folder that is closed to others; those that nobody listens on go."""

import os
import socket
import stat
from pathlib import Path

import pytest

from shared.errors import SettingsError
from shared.lanes.shared_memory.folder import listen, open_folder, remove_stale


def test_a_folder_is_made_closed(folder: Path) -> None:
    for _ in range(2):
        open_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o702])
def test_a_folder_that_others_may_enter_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(SettingsError, match="mode 0700"):
        open_folder(folder)


def test_a_folder_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_folder(folder)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(SettingsError, match="this user's"):
        open_folder(folder)


def test_what_is_no_folder_is_refused(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    with pytest.raises(SettingsError, match="no folder"):
        open_folder(folder)
    folder.unlink()
    folder.write_text("")
    with pytest.raises(SettingsError, match="cannot be made"):
        open_folder(folder)


def test_only_sockets_that_nobody_listens_on_are_removed(folder: Path) -> None:
    open_folder(folder)
    alive, alive_path = listen(folder, 1)
    gone, gone_path = listen(folder, 1)
    gone.close()
    busy, busy_path = listen(folder, 0)
    waiting = []
    for _ in range(8):  # until its queue is full
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        waiting.append(client)
        try:
            client.connect(str(busy_path))
        except BlockingIOError:
            break
    else:
        pytest.fail("a queue without end")
    other = folder / "pool-notes.sock"
    other.write_text("no socket")
    assert remove_stale(folder) == 1
    assert not gone_path.exists()
    assert all(path.exists() for path in (alive_path, busy_path, other))
    assert stat.S_IMODE(alive_path.stat().st_mode) == 0o600
    for each in (alive, busy, *waiting):
        each.close()


def test_a_path_that_is_too_long_for_a_socket_is_a_matter_of_settings(folder: Path) -> None:
    long = folder / ("x" * 100)
    open_folder(long)
    with pytest.raises(SettingsError, match="no socket can be made"):
        listen(long, 1)
