"""What a fetch has still to bring, for who asks again when its stream is lost."""

from collections.abc import Iterable

from shared.kv.entries import BlockEntries
from shared.pool.lanes.lane import Arrived


class Outstanding:
    """Wanted entries that neither came nor were denied, by block in the order of the request."""

    def __init__(self, blocks: Iterable[BlockEntries]) -> None:
        self._left = {block.key: block.layers for block in blocks}

    def remove(self, arrived: Arrived) -> None:
        """Take off what a message answered for. Who is told of what came corrupt asks for that, alone."""
        left = self._left
        for key, layer, *_ in arrived.frames:
            layers = left.get(key, 0)
            if layer >= 0 and layers >> layer & 1:  # a frame that nobody verified may name any block and layer
                left[key] = layers ^ 1 << layer
        for key, layers in (*arrived.missing, *arrived.corrupt):
            if key in left:
                left[key] &= ~layers

    @property
    def is_empty(self) -> bool:
        """Whether all was answered for."""
        return not any(self._left.values())

    def blocks(self) -> list[BlockEntries]:
        """Return all blocks of the request, each with what it lacks: where that is nothing, its place in the chain."""
        return [BlockEntries(key, layers) for key, layers in self._left.items()]

    def lacking(self) -> list[BlockEntries]:
        """Return the blocks that lack something."""
        return [block for block in self.blocks() if block.layers]
