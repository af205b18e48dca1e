"""How soon a prompt is to be computed: earliest deadline first, with ageing, priorities and inheritance. Pure."""

from collections.abc import Iterator
from contextlib import contextmanager

AGEING = 4.0
"""A second of waiting brings a prompt forward like a deadline that is this many seconds earlier."""

PRIORITY_S = 60.0
"""One level of priority counts like this many seconds of deadline."""

MAX_PRIORITY_S = 600.0
"""The most that a priority counts for, so that the least urgent prompt is reached in bounded time."""


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
        self._lenders: list[Urgency] = []

    @property
    def rank(self) -> float:
        """Return the own rank, or that of the most urgent prompt that waits for this one."""
        return min([self._own, *(lender.rank for lender in self._lenders)])

    @contextmanager
    def lend(self, to: "Urgency") -> Iterator[None]:
        """Let `to` be as urgent as this one, which waits for it, until the block ends. Never in a circle."""
        to._lenders.append(self)
        try:
            yield
        finally:
            to._lenders.remove(self)
