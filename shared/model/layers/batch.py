"""One engine step's work: which tokens of which sequences, where they stand and where their K and V go."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Span:
    """Consecutive new tokens of one sequence. Everything before `start` that they see is in its pages already."""

    tables: Sequence[Sequence[int]]  # per page group, the sequence's pages; -1 where none is held
    start: int  # position of the first new token
    num_tokens: int
    stores: bool = True  # False: K and V of these tokens are in the pages already, and are only read

    @property
    def end(self) -> int:
        """The sequence's length after this step."""
        return self.start + self.num_tokens


@dataclass(frozen=True, eq=False)
class Batch:
    """A step over one or more spans; tokens lie span after span. Built once a step, read by every layer.

    What depends on the page group is made when the first layer of the group asks for it.
    """

    spans: tuple[Span, ...]
    page_tokens: int
    positions: Tensor  # [num_tokens] int64, in the sequence
    _slots: dict[int, Tensor] = field(default_factory=dict, repr=False)
    _block_tables: dict[int, Tensor] = field(default_factory=dict, repr=False)
    _runs: dict[tuple[int, int, int, int], range | Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def build(cls, spans: Sequence[Span], page_tokens: int, device: torch.device | str = "cpu") -> "Batch":
        """Lay out a step. Every span has at least one token, and pages for its tokens in every group."""
        positions: list[int] = []
        for span in spans:
            pages = slice(span.start // page_tokens, -(-span.end // page_tokens))
            for table in span.tables:
                if span.num_tokens < 1 or len(table) < pages.stop or min(table[pages]) < 0:
                    raise ValueError(f"{span.num_tokens} tokens up to {span.end} do not fit the pages {table}")
            positions += range(span.start, span.end)
        return cls(tuple(spans), page_tokens, torch.tensor(positions, device=device))

    @property
    def num_tokens(self) -> int:
        return self.positions.shape[0]

    @property
    def is_decode(self) -> bool:
        """Whether every span is of one token."""
        return len(self.spans) == self.num_tokens

    @cached_property
    def lengths(self) -> Tensor:
        """The sequences' lengths after this step, `[num_spans]` int32."""
        if self.is_decode:
            return (self.positions + 1).to(torch.int32)
        return torch.tensor([span.end for span in self.spans], dtype=torch.int32, device=self.positions.device)

    @cached_property
    def query_starts(self) -> Tensor:
        """The row of each span's first token, and after the last the number of tokens, `[num_spans + 1]` int32."""
        starts = [0, *accumulate(span.num_tokens for span in self.spans)]
        return torch.tensor(starts, dtype=torch.int32, device=self.positions.device)

    def slots_of(self, group: int) -> Tensor:
        """Return where K and V of the step's tokens go in a page group: page * page_tokens + offset, int64.

        -1 for tokens of spans that store nothing.
        """
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
            self._slots[group] = torch.tensor(slots, device=self.positions.device)
        return self._slots[group]

    def block_table(self, group: int) -> Tensor:
        """Return `[num_spans, most pages]` int32 on the step's device: each sequence's pages up to its end, else -1."""
        if group not in self._block_tables:
            lengths = [-(-span.end // self.page_tokens) for span in self.spans]
            widest = max(lengths)
            rows = [
                [*span.tables[group][:length], *[-1] * (widest - length)]
                for span, length in zip(self.spans, lengths, strict=True)
            ]
            self._block_tables[group] = torch.tensor(rows, dtype=torch.int32, device=self.positions.device)
        return self._block_tables[group]

    def preset(self, group: int, block_table: Tensor, slots: Tensor) -> None:
        """Set what `block_table` and `slots_of` return, where they are made on the device."""
        self._block_tables[group] = block_table
        self._slots[group] = slots

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
