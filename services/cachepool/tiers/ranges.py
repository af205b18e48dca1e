"""Which bytes of an object to ask for, and in which order. Pure."""

from collections.abc import Iterable
from typing import NamedTuple

from services.cachepool.tiers.objects import ObjectEntry, ObjectHeader

FIRST_BYTES = 128 * 1024
LAST_BYTES = 1024 * 1024


class Range(NamedTuple):
    """Adjacent entries of one object, read in one go."""

    stage: int  # how many ranges of its object come before it
    places: tuple[ObjectEntry, ...]

    @property
    def offset(self) -> int:
        return self.places[0].offset

    @property
    def length(self) -> int:
        return self.places[-1].offset + self.places[-1].length - self.places[0].offset

    @property
    def layers(self) -> int:
        return sum(1 << place.layer for place in self.places)


def ranges(header: ObjectHeader, wanted: int) -> list[Range]:
    """Split the wanted layers (a bitmask) of an object into ranges, lowest layer first.

    A range joins entries that lie next to each other, up to a size that doubles from one range to the next: the first
    layers of all blocks come soon, which is what the reader waits for, and the others with few requests.
    """
    found: list[Range] = []
    limit = FIRST_BYTES
    for run in _runs(place for place in header.places if wanted >> place.layer & 1):
        while run:
            taken = _leading(run, limit)
            found.append(Range(len(found), tuple(run[:taken])))
            run = run[taken:]
            limit = min(2 * limit, LAST_BYTES)
    return found


def _runs(places: Iterable[ObjectEntry]) -> list[list[ObjectEntry]]:
    runs: list[list[ObjectEntry]] = []
    for place in places:
        if runs and runs[-1][-1].offset + runs[-1][-1].length == place.offset:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _leading(run: list[ObjectEntry], limit: int) -> int:
    """Return how many leading entries fit the limit; at least one."""
    size = 0
    for count, place in enumerate(run):
        size += place.length
        if size > limit:
            return max(1, count)
    return len(run)
