"""One engine step's work: which tokens of which sequences, where they stand and where their K and V go."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Span:
    """Consecutive new tokens of one sequence. Everything before `start` is in its pages already."""

    pages: Sequence[int]  # of the whole sequence; at least those up to the last new token
    start: int  # position of the first new token
    num_tokens: int

    @property
    def end(self) -> int:
        """The sequence's length after this step."""
        return self.start + self.num_tokens


@dataclass(frozen=True, eq=False)
class Batch:
    """A step over one or more spans; tokens lie span after span. Built once a step, read by every layer."""

    spans: tuple[Span, ...]
    page_tokens: int
    positions: Tensor  # [num_tokens] int64, in the sequence
    slots: Tensor  # [num_tokens] int64: page * page_tokens + offset

    @classmethod
    def build(cls, spans: Sequence[Span], page_tokens: int, device: torch.device | str = "cpu") -> "Batch":
        """Lay out a step. Every span has at least one token and pages enough for its end."""
        positions: list[int] = []
        slots: list[int] = []
        for span in spans:
            if span.num_tokens < 1 or len(span.pages) * page_tokens < span.end:
                raise ValueError(f"{span.num_tokens} tokens up to {span.end} do not fit {len(span.pages)} pages")
            positions += range(span.start, span.end)
            slots += (span.pages[p // page_tokens] * page_tokens + p % page_tokens for p in range(span.start, span.end))
        return cls(
            tuple(spans), page_tokens, torch.tensor(positions, device=device), torch.tensor(slots, device=device)
        )

    @property
    def num_tokens(self) -> int:
        return self.positions.shape[0]

    @cached_property
    def last_rows(self) -> Tensor:
        """The row of each span's last token: where the next token is predicted."""
        ends = torch.tensor([span.num_tokens for span in self.spans]).cumsum(0) - 1
        return ends.to(self.positions.device)

    def page_run(self, span: Span, first: int, last: int) -> range | list[int]:
        """Return the pages `first` to `last` (exclusive) of a span's sequence, as a range when they are adjacent."""
        pages = span.pages[first:last]
        head = pages[0]
        if all(page == head + i for i, page in enumerate(pages)):
            return range(head, head + len(pages))
        return list(pages)
