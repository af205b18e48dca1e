"""How much of prompts a step may compute beside a running batch: learnt from what steps took. Pure."""

from dataclasses import dataclass, field

MIN_TAIL_TOKENS = 16
"""What a step computes of waiting prompts at least, whatever it costs its batch."""

MEMORY = 0.98
"""What a measurement weighs when the next one comes."""


@dataclass
class StepCost:
    """What steps cost: `per_step + per_row * batch` seconds without tails, and `per_token` for each token of a tail.

    Sums of measurements, older ones weighing less. The line through steps without tails is by least squares; a tail's
    token costs what steps with tails took longer than that line.
    """

    _weight: float = 0.0
    _rows: float = 0.0
    _rows_squared: float = 0.0
    _seconds: float = 0.0
    _rows_seconds: float = 0.0
    _tail_tokens: float = 0.0
    _tail_seconds: float = 0.0

    def measured(self, num_rows: int, tail_tokens: float, seconds: float) -> None:
        """Note a step: rows of its batch, tokens of tails (through all layers) and what it took."""
        if not num_rows:
            return
        if tail_tokens:
            self._tail_tokens = MEMORY * self._tail_tokens + tail_tokens
            self._tail_seconds = MEMORY * self._tail_seconds + max(0.0, seconds - self.batch_s(num_rows))
            return
        self._weight = MEMORY * self._weight + 1
        self._rows = MEMORY * self._rows + num_rows
        self._rows_squared = MEMORY * self._rows_squared + num_rows**2
        self._seconds = MEMORY * self._seconds + seconds
        self._rows_seconds = MEMORY * self._rows_seconds + num_rows * seconds

    def batch_s(self, num_rows: int) -> float:
        """Return what a step of a batch takes without tails; 0 as long as none was measured."""
        if not self._weight or not num_rows:
            return 0.0
        rows, seconds = self._rows / self._weight, self._seconds / self._weight
        variance = self._rows_squared / self._weight - rows**2
        covariance = self._rows_seconds / self._weight - rows * seconds
        slope = max(0.0, covariance / variance) if variance > 1e-6 else 0.0
        return max(0.0, seconds + slope * (num_rows - rows))

    @property
    def per_token_s(self) -> float:
        """Seconds that a tail's token adds to a step; 0 as long as none was measured."""
        return self._tail_seconds / self._tail_tokens if self._tail_tokens else 0.0


@dataclass
class StepPace:
    """Bounds how late a step's tails make the tokens of its batch.

    With a latency target a step with tails takes no longer than that. Without one it takes at most twice what its
    batch takes alone, so that tails cost running requests half their speed at worst; when more prompts wait than
    requests run, as many times longer: a burst is not held up by the request that came first. At least
    `MIN_TAIL_TOKENS` go on in any case, so that every tail is reached.
    """

    max_tokens: int  # of a step
    target_s: float = 0.0  # 0: none
    cost: StepCost = field(default_factory=StepCost)

    def tail_tokens(self, num_running: int, num_tails: int) -> int:
        """Return how many tokens of tails the next step computes at most."""
        batch_s, per_token_s = self.cost.batch_s(num_running), self.cost.per_token_s
        if not batch_s or not per_token_s:
            return self.max_tokens
        spare_s = self.target_s - batch_s if self.target_s else batch_s * max(1.0, num_tails / num_running)
        return max(MIN_TAIL_TOKENS, min(self.max_tokens, int(spare_s / per_token_s)))
