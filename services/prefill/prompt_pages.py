"""What the pages of one prompt hold, which of them it still needs, and how far it may be computed in them."""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.engine.publish import PagePublisher
from shared.ids import BlockKey
from shared.model.pages.kv import PagedKv
from shared.model.pages.reservation import Reservation


@dataclass(frozen=True)
class PromptPages:
    """One prompt's reservation, slid along behind what was computed and sent. The reservation is the caller's."""

    kv: PagedKv
    reservation: Reservation
    keys: Sequence[BlockKey]
    publisher: PagePublisher
    stride_tokens: int  # what the reservation was made with

    def take_for_resume(self, start: int) -> None:
        """Hold the window pages that a resume after `start` blocks reads, and no others beyond the cached ones."""
        block_tokens = self.kv.layout.block_tokens
        self.kv.rewind(self.reservation, self.reservation.cached_blocks * block_tokens)
        if start > self.reservation.cached_blocks:
            covered = self.kv.cover(self.reservation, start * block_tokens, start * block_tokens)
            assert covered, "a window is within every guarantee"

    def limit(self, next_token: int, end: int) -> int:
        """Return how far tokens `[next_token, end)` may be computed now; 0 while sending is too far behind.

        Window pages must be there until their entries were sent, and for a stride only. Whoever has to wait waits until
        there is room for half of it, or it would go on block by block.
        """
        if self.publisher.full:
            return 0
        if not self.kv.groups.windowed:
            return end
        limit = self._passed(next_token) + self.stride_tokens
        return limit if limit >= min(end, next_token + self.stride_tokens // 2) else 0

    def begin(self, first: int, end: int) -> None:
        """Let go of the window pages behind tokens `[first, end)`, and take theirs. `end` is within `limit`."""
        self.kv.slide(self.reservation, self._passed(first))
        covered = self.kv.cover(self.reservation, first, end)
        assert covered, "a window and a stride are within the guarantee"

    def commit(self, start: int, end: int) -> None:
        """Make the leading `end` blocks reusable: cached, fetched to resume at `start`, computed from there on."""
        layout, cached = self.kv.layout, self.reservation.cached_layers
        fetched = [layout.needed_layers(block, start) for block in range(len(cached), start)]
        layers = [*cached, *fetched, *[layout.all_layers] * (end - start)]
        self.kv.commit(self.reservation, end, self.keys, layers)

    def sendable(self, start: int) -> list[int]:
        """Return the layers of each block that can be sent: cached, or computed from `start` on, and not slid past."""
        layout, cached = self.kv.layout, self.reservation.cached_layers
        ours = [*cached, *[0] * (start - len(cached)), *[layout.all_layers] * (len(self.keys) - start)]
        return [layers & self._held(block) for block, layers in enumerate(ours)]

    def _held(self, block: int) -> int:
        page = block // self.kv.blocks_per_page
        groups = zip(self.kv.groups.groups, self.reservation.tables, strict=True)
        return sum(1 << layer for group, table in groups if table[page] >= 0 for layer in group.layers)

    def _passed(self, first: int) -> int:
        """Return the token that all queries from now on are at or after, and before which nothing is to be sent."""
        return min(first, self.publisher.num_blocks_sent * self.kv.layout.block_tokens)
