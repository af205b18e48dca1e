"""What every contestant moves: so many payloads of one size, the same random bytes for all. Standard library only."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

MESSAGE_BYTES = 1024 * 1024
"""The pool's own limit on a message (`MAX_BATCH_BYTES`)."""

_DISTINCT = 64 * 1024 * 1024  # beyond any cache, so that nobody sends the same cached page again and again


class PoolLoad(NamedTuple):
    """One command to a client."""

    entry_bytes: int
    num_entries: int
    name: str  # of the keys: puts of one name are got under it

    @classmethod
    def of(cls, command: dict[str, Any]) -> "PoolLoad":
        return cls(command["entry_bytes"], command["num_entries"], command["name"])

    @property
    def entries_per_message(self) -> int:
        """How many entries the pool puts into one message."""
        return max(1, MESSAGE_BYTES // self.entry_bytes)


class Payloads:
    """Random payloads, made once for each size."""

    def __init__(self) -> None:
        self._by_size: dict[int, list[bytes]] = {}

    def of(self, num_bytes: int) -> list[bytes]:
        """Return distinct payloads of this size, to be used in turn."""
        if num_bytes not in self._by_size:
            self._by_size[num_bytes] = [os.urandom(num_bytes) for _ in range(max(1, _DISTINCT // num_bytes))]
        return self._by_size[num_bytes]


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    """Run `work`; return when it began and ended, by a clock that all processes of a machine share."""
    started = time.monotonic()
    work()
    return {"started": started, "ended": time.monotonic()}
