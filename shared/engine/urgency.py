"""How soon a prompt is to be computed: earliest deadline first, with ageing, priorities and inheritance. Pure."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

AGEING = 4.0
"""A second of waiting brings a prompt forward like a deadline that is this many seconds earlier."""

PRIORITY_S = 60.0
"""One level of priority counts like this many seconds of deadline."""

MAX_PRIORITY_S = 600.0
"""The most that a priority counts for, so that the least urgent prompt is reached in bounded time."""

YIELDING_PART = 4
"""A step of prompts that stand back is so many times smaller than others: a step is not interrupted, and whoever comes
meanwhile waits for its end. Smaller still, and the work of a step would be little beside its fixed costs."""


class Urgency:
    """Orders prompts: the lower `rank` is computed first.

    At time t a prompt's effective deadline is `deadline - AGEING * (t - arrived)`, moved by its priority. All prompts
    age alike, so that t cancels out of every comparison and the rank does not change while a prompt waits. Whatever
    keeps arriving, a prompt is overtaken only by those that arrive within the first
    `(its deadline - theirs + MAX_PRIORITY_S * 2) / (1 + AGEING)` seconds after it.
    """

    def __init__(self, arrived_s: float, deadline_s: float, priority: int = 0) -> None:
        """Times are of one clock, in seconds; a lower priority goes first, 0 is usual."""
        head_start = max(-MAX_PRIORITY_S, min(MAX_PRIORITY_S, priority * PRIORITY_S))
        self._own = deadline_s + head_start + AGEING * arrived_s
        self._priority = priority
        self._lenders: list[Urgency] = []

    @property
    def rank(self) -> float:
        """Return the own rank, or that of the most urgent prompt that waits for this one."""
        return self._first._own

    @property
    def priority(self) -> int:
        """Return the priority of the prompt that the rank is of."""
        return self._first._priority

    @property
    def stands_back(self) -> bool:
        """Whether it is less urgent than usual by its priority, so that others are to be expected before it."""
        return self.priority > 0

    @property
    def _first(self) -> "Urgency":
        return min([self, *(lender._first for lender in self._lenders)], key=lambda urgency: urgency._own)

    @contextmanager
    def lend(self, to: "Urgency") -> Iterator[None]:
        """Let `to` be as urgent as this one, which waits for it, until the block ends. Never in a circle."""
        to._lenders.append(self)
        try:
            yield
        finally:
            to._lenders.remove(self)


def sharing(in_order: Sequence[T], urgency: Callable[[T], Urgency]) -> list[T]:
    """Return those that share a step with the first: none that stands back beside one that does not."""
    if not in_order or urgency(in_order[0]).stands_back:
        return list(in_order)
    return [item for item in in_order if not urgency(item).stands_back]


def yielding_tokens(chunk_tokens: int, block_tokens: int) -> int:
    """Return the size of a step of prompts that stand back: whole blocks, as chunks are."""
    return max(block_tokens, chunk_tokens // YIELDING_PART // block_tokens * block_tokens)
