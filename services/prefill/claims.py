"""Which entries of a prompt this worker writes to its pool, and which ones others do."""

import asyncio
from collections.abc import Sequence

from shared.engine.publish import PagePublisher
from shared.ids import BlockKey
from shared.kv.entries import BlockEntries
from shared.kv.layout import KvLayout
from shared.pool.nodes import Publishing

ASK_EVERY_S = 0.25
"""Pause between two questions whether another writer has come to its end."""


class Claims:
    """One prompt's claims on its blocks. What is granted, the publisher gets to send."""

    def __init__(
        self, publication: Publishing, layout: KvLayout, keys: Sequence[BlockKey], publisher: PagePublisher
    ) -> None:
        self._publication = publication
        self._layout = layout
        self._keys = keys
        self._publisher = publisher
        self._others = [0] * len(keys)  # layers of each block that somebody else was writing when we asked last

    async def take(self, blocks: Sequence[int]) -> None:
        """Ask to write blocks (ascending) as far as nobody has them or is at it. Raises what the publication raises."""
        if not blocks:
            return
        claims = [BlockEntries(self._keys[block], self._layout.all_layers) for block in blocks]
        if blocks[0] > 0:
            claims.insert(0, BlockEntries(self._keys[blocks[0] - 1], 0))  # tells the pool what the first one follows
        grant = await self._publication.open(self._layout, claims)
        num_blocks = len(blocks)
        for block, granted, present in zip(
            blocks, grant.granted[-num_blocks:], grant.present[-num_blocks:], strict=True
        ):
            self._publisher.grant(block, granted)
            ours = self._publisher.outstanding[block]
            self._others[block] = self._layout.all_layers & ~ours & ~present

    def limit_to(self, in_pages: Sequence[int], num_blocks: int) -> None:
        """Send of the leading `num_blocks` blocks only the layers in `in_pages`: we do not have the others."""
        for block in range(num_blocks):
            self._publisher.limit(block, in_pages[block])

    async def settled(self) -> bool:
        """Wait until nobody else writes what a resume behind all blocks needs; return whether some of it became ours.

        A writer that is gone, or hangs, leaves entries behind that somebody waits for. Others are waited for by nobody:
        two who each hold what neither needs would wait for one another.
        """
        needed = [self._layout.needed_layers(block, len(self._keys)) for block in range(len(self._keys))]
        while unsure := [block for block, layers in enumerate(self._others) if layers & needed[block]]:
            await asyncio.sleep(ASK_EVERY_S)
            await self.take(unsure)
            if any(self._publisher.outstanding[block] & needed[block] for block in unsure):
                return True
        return False

    async def take_over(self, in_pages: Sequence[int]) -> None:
        """Ask again for what others were writing and we have, too: their writer may have gone without finishing."""
        unsure = [block for block, layers in enumerate(in_pages) if self._others[block] & layers]
        await self.take(unsure)
        for block in unsure:
            self._publisher.limit(block, in_pages[block])
