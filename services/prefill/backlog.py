"""The prompts on a prefill worker that still need computing, wherever they wait. Pure, with a clock."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shared.engine.costs.steps import QueuedWork, StepCosts
from shared.measuring.rates import RecentRate


@dataclass(eq=False)
class PendingPrompt:
    """A prompt's tokens `[first, end)` that this worker has still to compute, as far as is known."""

    first: int
    end: int


class Backlog:
    """Holds every prompt from its arrival to its end, and tells what they need together."""

    def __init__(self, costs: StepCosts, chunk_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._costs = costs
        self._chunk_tokens = chunk_tokens
        self._pending: set[PendingPrompt] = set()
        self._arrivals = RecentRate(clock)

    @property
    def arrivals_per_s(self) -> float:
        return self._arrivals.per_s

    @asynccontextmanager
    async def entered(self, first: int, end: int) -> AsyncIterator[PendingPrompt]:
        """Hold a prompt for the length of the block; whoever learns more of it sets `first`."""
        self._arrivals.add()
        pending = PendingPrompt(first, end)
        self._pending.add(pending)
        try:
            yield pending
        finally:
            self._pending.discard(pending)

    def queued(self) -> QueuedWork:
        """Return what all prompts need; of a step that has begun all is still to come."""
        return self._costs.queued(((prompt.first, prompt.end) for prompt in self._pending), self._chunk_tokens)
