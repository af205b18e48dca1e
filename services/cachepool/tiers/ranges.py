"""Which bytes of an object to ask for, and in which order. Pure."""

from collections.abc import Iterable
from typing import NamedTuple

from services.cachepool.tiers.objects import ObjectEntry, ObjectHeader

FIRST_BYTES = 128 * 1024
LAST_BYTES = 1024 * 1024


class Range(NamedTuple):
    """Adjacent entries of one object, read in one go."""

    stage: int  # how many ranges of its object come before it
    entries: tuple[ObjectEntry, ...]

    @property
    def offset(self) -> int:
        return self.entries[0].offset

    @property
    def length(self) -> int:
        return self.entries[-1].offset + self.entries[-1].length - self.entries[0].offset

    @property
    def layers(self) -> int:
        return sum(1 << entry.layer for entry in self.entries)


def ranges(header: ObjectHeader, wanted: int) -> list[Range]:
    """Split the wanted layers (a bitmask) of an object into ranges, lowest layer first.

    A range joins entries that lie next to each other, up to a size that doubles from one range to the next: the first
    layers of all blocks come soon, which is what the reader waits for, and the others with few requests.
    """
    found: list[Range] = []
    limit = FIRST_BYTES
    for run in _runs(entry for entry in header.entries if wanted >> entry.layer & 1):
        while run:
            taken = _leading(run, limit)
            found.append(Range(len(found), tuple(run[:taken])))
            run = run[taken:]
            limit = min(2 * limit, LAST_BYTES)
    return found


def _runs(entries: Iterable[ObjectEntry]) -> list[list[ObjectEntry]]:
    runs: list[list[ObjectEntry]] = []
    for entry in entries:
        if runs and runs[-1][-1].offset + runs[-1][-1].length == entry.offset:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return runs


def _leading(run: list[ObjectEntry], limit: int) -> int:
    """Return how many leading entries fit the limit; at least one."""
    size = 0
    for count, entry in enumerate(run):
        size += entry.length
        if size > limit:
            return max(1, count)
    return len(run)
