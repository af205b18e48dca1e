"""The part of a prompt that decode computes itself, advanced a few layers at a time as their gates open."""

from dataclasses import dataclass

import torch

from shared.model.batch import Batch, Span
from shared.model.paged import PagedKv, Reservation
from shared.model.transformer import Transformer


@dataclass(eq=False)
class Tail:
    """Prompt tokens `[start, end)`: normally the last 1 to 64, all of them when no pool could help.

    Runs in chunks, each through all layers before the next one starts. Layer l of a chunk may run once layer l of every
    fetched block has landed, which is what the caller's `open_layers` says.
    """

    start: int
    end: int
    chunk_tokens: int
    first: int = -1  # of the chunk in hand
    next_layer: int = 0
    batch: Batch | None = None
    hidden: torch.Tensor | None = None  # [chunk, hidden size], after `next_layer` layers

    def __post_init__(self) -> None:
        self.first = self.start

    @property
    def chunk_end(self) -> int:
        return min(self.end, self.first + self.chunk_tokens)

    def num_runnable(self, open_layers: int, token_budget: int, num_layers: int) -> int:
        """Return how many layers of the chunk in hand may run now.

        `token_budget` counts tokens through all layers; at least one layer runs, however long the chunk.
        """
        affordable = max(1, token_budget * num_layers // (self.chunk_end - self.first))
        return max(0, min(open_layers - self.next_layer, affordable))

    def advance(
        self, num_layers: int, model: Transformer, kv: PagedKv, reservation: Reservation, tokens: list[int]
    ) -> torch.Tensor | None:
        """Run `num_layers` more layers, in the torch thread. Return the last hidden state `[1, H]` at the very end."""
        if self.batch is None or self.hidden is None:
            span = Span(reservation.tables, self.first, self.chunk_end - self.first)
            self.batch = Batch.build([span], kv.page_tokens, model.device)
            self.hidden = model.embed(torch.tensor(tokens[self.first : self.chunk_end], device=model.device))
        for layer in range(self.next_layer, self.next_layer + num_layers):
            self.hidden = model.layer(layer, self.hidden, self.batch, kv)
        self.next_layer += num_layers
        if self.next_layer < model.num_layers:
            return None
        last = self.hidden[-1:]
        finished = self.chunk_end == self.end
        self.first, self.next_layer, self.batch, self.hidden = self.chunk_end, 0, None, None
        return last if finished else None
