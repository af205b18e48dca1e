"""What is made of files, and made again when they change."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from shared.errors import SettingsError
from shared.log import get_logger

T = TypeVar("T")
Stamp: TypeAlias = tuple[tuple[int, int, int], ...]

CHECK_S = 1.0
"""Files are looked at no more often than that."""


class Reloading(Generic[T]):
    """Owns the newest value that could be made of some files. Any thread.

    A change is noticed when the value is asked for. While the changed files are of no use, as in the middle of a
    rotation, the last good value stays; the log says so once for each change.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        make: Callable[[], T],
        *,
        what: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises what `make` raises: `SettingsError`."""
        self._paths = tuple(paths)
        self._make = make
        self._what = what
        self._clock = clock
        self._lock = threading.Lock()
        self._stamp = stamp_of(self._paths)
        self._value = make()
        self._failed: Stamp | None = None
        self._check_at = clock() + CHECK_S

    def current(self) -> T:
        """Return the newest value. Does not raise."""
        if self._clock() < self._check_at:
            return self._value
        with self._lock:
            self._check_at = self._clock() + CHECK_S
            stamp = stamp_of(self._paths)
            if stamp != self._stamp:
                self._reload(stamp)
            return self._value

    def _reload(self, stamp: Stamp) -> None:
        log = get_logger()
        try:
            value = self._make()
            if stamp_of(self._paths) != stamp:
                return  # they changed while they were read: the next look tells
        except SettingsError as error:
            if stamp != self._failed:
                log.warning("certificate_not_reloaded", what=self._what, error=str(error))
            self._failed = stamp
            return
        self._value, self._stamp, self._failed = value, stamp, None
        log.info("certificate_reloaded", what=self._what)


def stamp_of(paths: Sequence[Path]) -> Stamp:
    """Return what tells one state of the files from another."""
    stamps = []
    for path in paths:
        try:
            found = path.stat()  # through links: a mounted secret changes as the target of one
        except OSError:
            stamps.append((0, 0, 0))
        else:
            stamps.append((found.st_mtime_ns, found.st_ino, found.st_size))
    return tuple(stamps)
