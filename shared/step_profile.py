"""What a step of an engine's model takes, and what a prompt takes in steps. Pure."""

import math
from typing import NamedTuple


class StepProfile(NamedTuple):
    """Seconds of a step as a linear function of what is in it; no coefficient is negative."""

    base_s: float  # a step
    token_s: float  # a prompt token
    pair_s: float = 0.0  # a prompt token and a token that it sees
    row_s: float = 0.0  # a running request
    context_s: float = 0.0  # a token of a running request's context
    num_steps: float = 0.0  # measured steps that it rests on, older ones counted less; below 1 it is a prior

    def step_s(
        self, num_tokens: float = 0.0, num_pairs: float = 0.0, num_rows: float = 0.0, context_tokens: float = 0.0
    ) -> float:
        """Return the seconds of one step."""
        prompt_s = self.token_s * num_tokens + self.pair_s * num_pairs
        return self.base_s + prompt_s + self.row_s * num_rows + self.context_s * context_tokens

    def prompt_s(self, first: int, end: int, step_tokens: int) -> float:
        """Return the seconds of computing a prompt's tokens `[first, end)` alone, in steps of at most `step_tokens`."""
        if end <= first:
            return 0.0
        num_steps = math.ceil((end - first) / max(1, step_tokens))
        return self.base_s * num_steps + self.token_s * (end - first) + self.pair_s * num_pairs(first, end)


def num_pairs(first: float, end: float) -> float:
    """Return how many pairs of a token of `[first, end)` and a token at or before it there are."""
    return (end - first) * (first + end + 1) / 2
