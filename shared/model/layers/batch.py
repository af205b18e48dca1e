"""One engine step's work: which tokens of which sequences, where they stand and where their K and V go."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared.model.layers.placed import StepNumbers, place
from shared.model.layers.span import Span

__all__ = ["Batch", "Span"]


@dataclass(frozen=True, eq=False)
class Batch:
    """A step over one or more spans; tokens lie span after span. Built once a step, read by every layer."""

    spans: tuple[Span, ...]
    page_tokens: int
    max_queries: int  # no span has more tokens
    numbers: StepNumbers[Tensor]  # on the step's device
    _runs: dict[tuple[int, int, int, int], range | Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def build(
        cls,
        spans: Sequence[Span],
        page_tokens: int,
        device: torch.device | str = "cpu",
        token_ids: Sequence[int] = (),
    ) -> "Batch":
        """Lay out a step. Every span has at least one token, and pages for its tokens in every group."""
        for span in spans:
            pages = slice(span.start // page_tokens, -(-span.end // page_tokens))
            for table in span.tables:
                if span.num_tokens < 1 or len(table) < pages.stop or min(table[pages]) < 0:
                    raise ValueError(f"{span.num_tokens} tokens up to {span.end} do not fit the pages {table}")
        numbers = place(token_ids, spans, page_tokens, torch.device(device))
        return cls(tuple(spans), page_tokens, max(span.num_tokens for span in spans), numbers)

    @property
    def num_tokens(self) -> int:
        return self.positions.shape[0]

    @property
    def is_decode(self) -> bool:
        """Whether every span is of one token."""
        return self.max_queries == 1

    @property
    def token_ids(self) -> Tensor:
        """`[num_tokens]` int64, if they were given."""
        return self.numbers.token_ids

    @property
    def positions(self) -> Tensor:
        """`[num_tokens]` int64, in the sequence."""
        return self.numbers.positions

    @property
    def lengths(self) -> Tensor:
        """The sequences' lengths after this step, `[num_spans]` int32."""
        return self.numbers.lengths

    @property
    def query_starts(self) -> Tensor:
        """The row of each span's first token, and after the last the number of tokens, `[num_spans + 1]` int32."""
        return self.numbers.query_starts

    def slots_of(self, group: int) -> Tensor:
        """Return where K and V of the step's tokens go in a page group: page * page_tokens + offset, int64.

        -1 for tokens of spans that store nothing.
        """
        return self.numbers.slots[group]

    def block_table(self, group: int) -> Tensor:
        """Return `[num_spans, most pages]` int32 on the step's device: each sequence's pages up to its end, else -1."""
        return self.numbers.tables[group]

    def page_run(self, span: int, group: int, first: int, last: int) -> range | Tensor:
        """Return the pages `first` to `last` (exclusive) of the sequence of span number `span`.

        A range when they are adjacent, else their numbers on the step's device.
        """
        name = (span, group, first, last)
        if name not in self._runs:
            pages = list(self.spans[span].tables[group][first:last])
            run = range(pages[0], pages[0] + len(pages))
            self._runs[name] = run if pages == list(run) else torch.tensor(pages, device=self.positions.device)
        return self._runs[name]
