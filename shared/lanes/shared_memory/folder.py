"""A folder of Unix sockets which nobody but their owner may enter."""

import os
import secrets
import socket
import stat
from pathlib import Path

from shared.errors import SettingsError

_PREFIX, _SUFFIX = "pool-", ".sock"


def open_folder(folder: Path) -> None:
    """Make the folder where it is absent. Raises `SettingsError` unless it is this user's alone."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise SettingsError(f"the folder of sockets {folder} cannot be made: {error}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise SettingsError(f"{folder} is no folder")
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise SettingsError(f"the folder of sockets {folder} must be this user's, and closed to all others (mode 0700)")


def remove_stale(folder: Path) -> int:
    """Remove sockets on which nobody listens any more, and return how many."""
    num_removed = 0
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        if not path.is_socket():
            continue
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
                num_removed += 1
            except OSError:
                pass  # its queue is full, or it has just gone
    return num_removed


def listen(folder: Path, backlog: int) -> tuple[socket.socket, Path]:
    """Return a socket that listens under a new name in the folder. Raises `SettingsError`."""
    name = f"{secrets.token_hex(8)}{_SUFFIX}"
    bound, path = folder / f".{name}", folder / f"{_PREFIX}{name}"
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.setblocking(False)
        listener.bind(str(bound))
        bound.chmod(0o600)
        listener.listen(backlog)
        bound.rename(path)  # only now: others remove a socket that has the name but does not listen yet
    except OSError as error:
        listener.close()
        bound.unlink(missing_ok=True)
        raise SettingsError(f"no socket can be made in {folder}: {error}") from None
    return listener, path
