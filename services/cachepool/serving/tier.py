"""What serving asks of a tier behind memory, and the one of a pool that has none."""

from collections.abc import Sequence
from typing import Protocol

from services.cachepool.store.sources import SourcedReader
from shared.ids import BlockKey
from shared.kv.layout import KvLayout


class Tier(Protocol):
    """Blocks behind memory. None of these calls waits or raises."""

    def readable(self, key: BlockKey, layout: KvLayout | None = None) -> int:
        """Return the layers of a block that a reader would get from here, as far as one can tell beforehand."""

    def add_readable(self, keys: Sequence[BlockKey], present: list[int]) -> list[int]:
        """Return the layers of blocks that memory, `present`, or this tier has."""

    def start(self, sourced: SourcedReader) -> None:
        """Begin to bring what the reader wants, nobody writes, and this tier has."""

    def cancel_unwanted(self) -> None:
        """Cancel what no reader waits for any more."""


class NoTier:
    """A `Tier` that has nothing."""

    def readable(self, key: BlockKey, layout: KvLayout | None = None) -> int:
        return 0

    def add_readable(self, keys: Sequence[BlockKey], present: list[int]) -> list[int]:
        return present

    def start(self, sourced: SourcedReader) -> None:
        pass

    def cancel_unwanted(self) -> None:
        pass
