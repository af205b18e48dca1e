"""The part of its tokens that decode computes itself, advanced a few layers at a time as their gates open."""

from dataclasses import dataclass

import torch

from shared.model.layers.batch import Batch, Span
from shared.model.pages.kv import PagedKv
from shared.model.pages.reservation import Reservation
from shared.model.transformer import Transformer


@dataclass(eq=False)
class Tail:
    """Tokens `[start, end)`: normally a prompt's last 1 to 64, all of them when no pool could help. A prompt of whole
    blocks that are held leaves its last token, whose K and V came with its block: on a page that others share they are
    read only, in one of the request's own they are computed once more into their place.

    Runs in chunks, each through all layers before the next one starts. Layer l of a chunk may run once layer l of every
    fetched block has landed: whoever calls `advance` sees to that.
    """

    start: int
    end: int
    chunk_tokens: int
    num_blocks: int = 0  # leading ones that it counts on
    stores: bool = True  # False: it is a last token whose K and V are in a shared page
    first: int = -1  # of the chunk in hand; everything before it is computed
    next_layer: int = 0
    batch: Batch | None = None
    hidden: torch.Tensor | None = None  # [chunk, hidden size], after `next_layer` layers

    def __post_init__(self) -> None:
        self.first = self.start

    @property
    def chunk_end(self) -> int:
        return min(self.end, self.first + self.chunk_tokens)

    def advance(
        self, num_layers: int, model: Transformer, kv: PagedKv, reservation: Reservation, tokens: list[int]
    ) -> torch.Tensor | None:
        """Run `num_layers` more layers, in the torch thread. Return the last hidden state `[1, H]` at the very end."""
        if self.batch is None or self.hidden is None:
            span = Span(reservation.tables, self.first, self.chunk_end - self.first, self.stores)
            self.batch = Batch.build([span], kv.page_tokens, model.device)
            self.hidden = model.embed(torch.tensor(tokens[self.first : self.chunk_end], device=model.device))
        end = self.next_layer + num_layers
        self.hidden = model.layers(self.next_layer, end, self.hidden, self.batch, kv)
        self.next_layer = end
        if self.next_layer < model.num_layers:
            return None
        last = self.hidden[-1:]
        finished = self.chunk_end == self.end
        self.first, self.next_layer, self.batch, self.hidden = self.chunk_end, 0, None, None
        return last if finished else None
