"""What the steps of an engine take, learnt from each of them. Pure."""

import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from shared.measuring.fitting import OnlineFit
from shared.measuring.rates import RecentRate
from shared.step_profile import StepProfile, num_pairs


class StepWork(NamedTuple):
    """What was in a step, in the terms of `StepProfile.step_s`. What passes some layers counts by their share."""

    num_tokens: float = 0.0  # of prompts
    num_pairs: float = 0.0  # of such a token and a token that it sees, were there no windows
    num_rows: float = 0.0  # running requests
    context_tokens: float = 0.0  # of running requests


NOTHING = StepWork()


class QueuedWork(NamedTuple):
    """What prompts still need of steps."""

    num_tokens: int
    seconds: float


class StepCosts:
    """Learns a `StepProfile` from steps, and how busy they keep the engine. Belongs to the event loop.

    A step's seconds are what its requests wait for it: from the plan to the results, hops between threads included.
    """

    def __init__(self, fit: OnlineFit, clock: Callable[[], float] = time.monotonic) -> None:
        """`fit` has a coefficient for each of the leading parts of a `StepProfile`; the others are 0."""
        self.fit = fit
        self._busy = RecentRate(clock)
        self._busy_with_prompts = RecentRate(clock)
        self._profile: StepProfile | None = None  # until the next step

    @property
    def profile(self) -> StepProfile:
        if self._profile is None:
            self._profile = StepProfile(0.0, 0.0, num_steps=self.fit.num_observations)._replace(
                **dict(zip(StepProfile._fields, self.fit.coefficients, strict=False))
            )
        return self._profile

    @property
    def busy(self) -> float:
        """Share of the last seconds that was spent in steps."""
        return min(1.0, self._busy.per_s)

    @property
    def busy_with_prompts(self) -> float:
        """Share of the last seconds that prompts added to steps: a batch is no queue that another prompt waits in."""
        return min(1.0, self._busy_with_prompts.per_s)

    def stepped(self, seconds: float, work: StepWork | None) -> None:
        """Note a step. None: nobody can say what was computed in it."""
        self._busy.add(seconds)
        if work is not None:
            self._busy_with_prompts.add(seconds * self._share_of_prompts(work))
            self.fit.measured((1.0, *work)[: self.fit.num_features], seconds)
            self._profile = None

    def _share_of_prompts(self, work: StepWork) -> float:
        if not work.num_tokens or not work.num_rows:
            return float(work.num_tokens > 0)
        whole = self.profile.step_s(*work)
        return 1 - self.profile.step_s(*work._replace(num_tokens=0, num_pairs=0)) / whole if whole else 1.0

    def queued(self, prompts: Iterable[tuple[int, int]], step_tokens: int, beside: StepWork = NOTHING) -> QueuedWork:
        """Return what prompts need whose tokens `[first, end)` are left, in steps of `step_tokens`.

        Prompts share steps. `beside` is what each of these steps has in it anyway.
        """
        left = [(first, end) for first, end in prompts if first < end]
        num_tokens = sum(end - first for first, end in left)
        profile = self.profile
        num_steps = math.ceil(num_tokens / max(1, step_tokens))
        pairs = sum(num_pairs(first, end) for first, end in left)
        seconds = num_steps * profile.step_s(*beside) + profile.token_s * num_tokens + profile.pair_s * pairs
        return QueuedWork(num_tokens, seconds)
