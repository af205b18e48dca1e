"""How much of prompts a step may compute beside a running batch: learnt from what steps took. Pure."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.engine.packing import MIN_TAIL_TOKENS
from shared.engine.urgency import Urgency

WAITING_WEIGHT = 2
"""How many running requests a waiting prompt counts as: it has nothing yet, they have most of their speed."""

MEMORY = 0.98
"""What a measurement weighs when the next one comes."""


@dataclass
class CostLine:
    """`seconds = offset + slope * size` by least squares; older measurements weigh less. Neither is below 0."""

    _weight: float = 0.0
    _sizes: float = 0.0
    _squares: float = 0.0
    _seconds: float = 0.0
    _products: float = 0.0

    def measured(self, size: float, seconds: float) -> None:
        self._weight = MEMORY * self._weight + 1
        self._sizes = MEMORY * self._sizes + size
        self._squares = MEMORY * self._squares + size**2
        self._seconds = MEMORY * self._seconds + seconds
        self._products = MEMORY * self._products + size * seconds

    @property
    def is_known(self) -> bool:
        return self._weight > 0

    @property
    def slope(self) -> float:
        """Seconds for each unit of size; when all measured sizes were equal, half of the seconds are held to be so."""
        size, seconds = self._sizes / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - size**2
        if variance <= 1e-6 * size**2:
            return seconds / size / 2
        covariance = self._products / self._weight - size * seconds
        return min(max(0.0, covariance / variance), seconds / size)

    @property
    def offset(self) -> float:
        return max(0.0, (self._seconds - self.slope * self._sizes) / self._weight)

    def at(self, size: float) -> float:
        return self.offset + self.slope * size


@dataclass
class StepCost:
    """What steps took: those of a batch alone by its rows, and what tails add to them by their tokens.

    Tails add more than their tokens: a step that carries them may be launched otherwise, or read weights in another
    form. That part is learnt apart, since it is the same for few tokens and for many.
    """

    batch: CostLine = field(default_factory=CostLine)
    tails: CostLine = field(default_factory=CostLine)

    def measured(self, num_rows: int, tail_tokens: float, seconds: float) -> None:
        """Note a step: rows of its batch, tokens of tails (through all layers) and what it took."""
        if not num_rows:
            return
        if not tail_tokens:
            self.batch.measured(num_rows, seconds)
        elif self.batch.is_known:
            self.tails.measured(tail_tokens, max(0.0, seconds - self.batch.at(num_rows)))


@dataclass
class StepPace:
    """Bounds how late a step's tails make the tokens of its batch.

    With a latency target a step with tails takes no longer than that. Without one it takes at most twice what its
    batch takes alone, so that tails cost running requests half their speed at worst. When so many prompts wait that
    they outweigh those that run (`WAITING_WEIGHT`) it is as many times longer: a burst is not held up by the requests
    that came first. In any case at least
    `MIN_TAIL_TOKENS` go on, so that every tail is reached, and as many as take what tails cost a step whatever their
    number: else steps would do little but pay for having tails.
    """

    max_tokens: int  # of a step
    target_s: float = 0.0  # 0: none
    cost: StepCost = field(default_factory=StepCost)
    yielding_tokens: int = sys.maxsize  # of a step whose first tail stands back

    def room(self, tails: Sequence[Urgency], rows: Sequence[Urgency]) -> int:
        """Return how many tokens of `tails`, in the order of their turns, the next step computes at most beside `rows`.

        Rows that stand back have no claim on the time of a tail that does not. A step of tails that stand back is
        small, since it is not interrupted for one that comes meanwhile.
        """
        if not tails:
            return 0
        if tails[0].stands_back:
            return min(self.yielding_tokens, self.tail_tokens(len(rows), len(tails)))
        return self.tail_tokens(sum(not row.stands_back for row in rows), len(tails))

    def tail_tokens(self, num_running: int, num_tails: int) -> int:
        """Return how many tokens of tails the next step computes at most."""
        batch, tails = self.cost.batch, self.cost.tails
        if not num_running or not (batch.is_known and tails.is_known and tails.slope):
            return self.max_tokens
        batch_s = batch.at(num_running)
        spare_s = (
            self.target_s - batch_s if self.target_s else batch_s * max(1.0, WAITING_WEIGHT * num_tails / num_running)
        )
        wanted = max(spare_s - tails.offset, tails.offset) / tails.slope
        return int(max(MIN_TAIL_TOKENS, min(self.max_tokens, wanted)))
