"""Placements as a pool would tell them, for an index."""

from collections.abc import Iterable, Sequence
from hashlib import sha256

from services.gateway.placement.index import PlacementIndex
from shared.bus.events import StoredBlocks
from shared.ids import BlockKey, WorkerId


def key(number: int) -> BlockKey:
    """A key as spread out as real ones are."""
    return BlockKey(sha256(number.to_bytes(4, "big")).digest())


def packed(stored: Iterable[tuple[int, int] | tuple[int, int, int]]) -> tuple[StoredBlocks, ...]:
    """Blocks by number, with groups in any tier and, unless they are the same, groups in memory."""
    return tuple(StoredBlocks(key(number), groups[0], groups[-1]) for number, *groups in stored)


def take_snapshot(
    index: PlacementIndex, holder: WorkerId, epoch: int, sequence: int, stored: Sequence[StoredBlocks]
) -> None:
    """A whole snapshot at once."""
    intake = index.open_snapshot(holder)
    intake.add(stored)
    index.finish_snapshot(intake, epoch, sequence)
    intake.close()
