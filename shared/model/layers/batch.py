"""One engine step's work: which tokens of which sequences, where they stand and where their K and V go."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from shared.model.layers.placed import StepNumbers, place
from shared.model.layers.span import Span

__all__ = ["Batch", "Span"]


@dataclass(frozen=True, eq=False)
class Batch:
    """A step over one or more spans; tokens lie span after span. Built once a step, read by every layer.

    On a CPU what depends on the page group is made when the first layer of the group asks for it. On other devices all
    numbers are placed by one copy.
    """

    spans: tuple[Span, ...]
    page_tokens: int
    positions: Tensor  # [num_tokens] int64, in the sequence
    token_ids: Tensor  # [num_tokens] int64, if they were given
    max_queries: int  # no span has more tokens
    placed: StepNumbers[Tensor] | None = None  # where all numbers are on the device
    _slots: dict[int, Tensor] = field(default_factory=dict, repr=False)
    _block_tables: dict[int, Tensor] = field(default_factory=dict, repr=False)
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
        device, max_queries = torch.device(device), max(span.num_tokens for span in spans)
        if device.type == "cpu":
            positions = torch.tensor([position for span in spans for position in range(span.start, span.end)])
            return cls(tuple(spans), page_tokens, positions, torch.tensor(token_ids, dtype=torch.int64), max_queries)
        return cls.of_numbers(spans, page_tokens, place(token_ids, spans, page_tokens, device), max_queries)

    @classmethod
    def of_numbers(
        cls, spans: Sequence[Span], page_tokens: int, placed: StepNumbers[Tensor], max_queries: int
    ) -> "Batch":
        """Return the batch that numbers on a device describe."""
        return cls(tuple(spans), page_tokens, placed.positions, placed.token_ids, max_queries, placed)

    @property
    def num_tokens(self) -> int:
        return self.positions.shape[0]

    @property
    def is_decode(self) -> bool:
        """Whether every span is of one token."""
        return self.max_queries == 1

    @cached_property
    def lengths(self) -> Tensor:
        """The sequences' lengths after this step, `[num_spans]` int32."""
        if self.placed is not None:
            return self.placed.lengths
        return torch.tensor([span.end for span in self.spans], dtype=torch.int32)

    @cached_property
    def query_starts(self) -> Tensor:
        """The row of each span's first token, and after the last the number of tokens, `[num_spans + 1]` int32."""
        if self.placed is not None:
            return self.placed.query_starts
        return torch.tensor([0, *accumulate(span.num_tokens for span in self.spans)], dtype=torch.int32)

    def slots_of(self, group: int) -> Tensor:
        """Return where K and V of the step's tokens go in a page group: page * page_tokens + offset, int64.

        -1 for tokens of spans that store nothing.
        """
        if self.placed is not None:
            return self.placed.slots[group]
        if group not in self._slots:
            slots: list[int] = []
            for span in self.spans:
                if not span.stores:
                    slots += [-1] * span.num_tokens
                    continue
                table, position = span.tables[group], span.start
                while position < span.end:
                    index, offset = divmod(position, self.page_tokens)
                    count = min(span.end - position, self.page_tokens - offset)
                    first = table[index] * self.page_tokens + offset
                    slots += range(first, first + count)
                    position += count
            self._slots[group] = torch.tensor(slots)
        return self._slots[group]

    def block_table(self, group: int) -> Tensor:
        """Return `[num_spans, most pages]` int32 on the step's device: each sequence's pages up to its end, else -1."""
        if self.placed is not None:
            return self.placed.tables[group]
        if group not in self._block_tables:
            lengths = [-(-span.end // self.page_tokens) for span in self.spans]
            widest = max(lengths)
            rows = [
                [*span.tables[group][:length], *[-1] * (widest - length)]
                for span, length in zip(self.spans, lengths, strict=True)
            ]
            self._block_tables[group] = torch.tensor(rows, dtype=torch.int32)
        return self._block_tables[group]

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
