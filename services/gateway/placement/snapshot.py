"""A snapshot that is coming in, part by part."""

from collections.abc import Sequence

from services.gateway.placement.states import States
from services.gateway.placement.table.changes import Run, joined
from services.gateway.placement.table.pairs import OwnedPairs
from shared.bus.events import StoredBlocks
from shared.ids import WorkerId


class IncomingSnapshot:
    """Its blocks are found once the index has finished it."""

    def __init__(self, pairs: OwnedPairs, states: States, holder_id: WorkerId) -> None:
        self.holder_id = holder_id
        self.owner: int | None = pairs.owners.new()
        self.num_blocks = 0
        self._pairs = pairs
        self._states = states

    def add(self, stored: Sequence[StoredBlocks]) -> None:
        """Take the next part; some thousand blocks a call keep the event loop free."""
        assert self.owner is not None
        self.num_blocks += sum(blocks.num_blocks for blocks in stored)
        self._pairs.change(joined(stored_runs(stored, self.owner, self._states)))

    def release(self) -> int:
        """Hand the blocks over to whoever asks first."""
        assert self.owner is not None
        owner, self.owner = self.owner, None
        return owner

    def close(self) -> None:
        """Drop what was not handed over; idempotent."""
        if self.owner is not None:
            self._pairs.owners.drop(self.release())


def stored_runs(stored: Sequence[StoredBlocks], owner: int, states: States) -> list[Run]:
    """Return what a pool says that it has stored as runs of an owner."""
    return [Run(blocks.keys, owner, states.number(blocks.groups, blocks.memory_groups)) for blocks in stored]
