"""The part of its tokens that decode computes itself."""

from dataclasses import dataclass

import torch

from shared.model.pages.kv import PagedKv
from shared.model.pages.reservation import Reservation


@dataclass(frozen=True)
class PageCopy:
    """The leading tokens of a page that another sequence computed, on their way into one's own page `index`."""

    source: Reservation
    target: Reservation
    index: int
    num_tokens: int

    def run(self, kv: PagedKv) -> None:
        kv.copy_page(self.source, self.target, self.index, self.num_tokens)


@dataclass(eq=False)
class Tail:
    """Tokens `[start, end)`: normally a prompt's last 1 to 64, all of them when no pool could help. A prompt of whole
    blocks that are held leaves its last token, whose K and V came with its block: on a page that others share they are
    read only, in one of the request's own they are computed once more into their place.

    What lies before `first` is computed. From there on the tail goes through a step's layers as a row range of any
    length within the chunk in hand: between chunks windows slide. While entries that it sees are still to land the
    rest of the chunk goes on in layers instead: `hidden` is where it stands, and layer l may run once layer l of every
    fetched block has landed.
    """

    start: int
    end: int
    chunk_tokens: int
    num_blocks: int = 0  # leading ones that it counts on
    stores: bool = True  # False: it is a last token whose K and V are in a shared page
    copy: PageCopy | None = None  # what is to be copied before the first token is computed
    first: int = -1
    next_layer: int = 0
    hidden: torch.Tensor | None = None  # [chunk_end - first, hidden size], after `next_layer` layers

    def __post_init__(self) -> None:
        self.first = self.start

    @property
    def chunk_end(self) -> int:
        done = (self.first - self.start) // self.chunk_tokens
        return min(self.end, self.start + (done + 1) * self.chunk_tokens)

    @property
    def begins_chunk(self) -> bool:
        """Whether nothing of the chunk in hand has begun."""
        return self.next_layer == 0 and self.is_chunk_end(self.first)

    def is_chunk_end(self, position: int) -> bool:
        """Whether a chunk ends, and the next one begins, at a position."""
        return (position - self.start) % self.chunk_tokens == 0

    def computed(self, num_tokens: int) -> bool:
        """Note that the next tokens are through all layers; return whether that was the tail's end."""
        self.first, self.next_layer, self.hidden = self.first + num_tokens, 0, None
        return self.first == self.end
