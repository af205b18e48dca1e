"""Blocks that a prefill worker is computing right now, so that a second prompt with that prefix follows the first."""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.ids import BlockKey, WorkerId


@dataclass(frozen=True, slots=True, eq=False)
class PrefillPromise:
    """One running prefill call: `worker` will have made the blocks of `keys` available in its pool."""

    worker: WorkerId
    keys: Sequence[BlockKey]  # a chain: equal keys at one position mean equal keys before it


class PrefillPromises:
    """The prefill calls of this gateway that have not ended."""

    def __init__(self) -> None:
        self._open: set[PrefillPromise] = set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, promise: PrefillPromise) -> None:
        self._open.add(promise)

    def drop(self, promise: PrefillPromise) -> None:
        """Forget a promise that was kept or broken; idempotent."""
        self._open.discard(promise)

    def longest(self, keys: Sequence[BlockKey]) -> dict[WorkerId, int]:
        """Return how many leading blocks of `keys` each worker is computing; workers with none are left out."""
        best: dict[WorkerId, int] = {}
        for promise in self._open:
            shared = _shared_blocks(promise.keys, keys)
            if shared > best.get(promise.worker, 0):
                best[promise.worker] = shared
        return best


def _shared_blocks(left: Sequence[BlockKey], right: Sequence[BlockKey]) -> int:
    """Binary search: in two hash chains, positions agree up to the first difference and never after it."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[middle - 1] == right[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
