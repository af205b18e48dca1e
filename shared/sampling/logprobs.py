"""What a request can be told about how likely its tokens were. No torch: the gateway shapes it."""

from typing import NamedTuple

MAX_LOGPROBS = 20
"""Alternatives to a token that a request may ask for."""


class TokenLogprobs(NamedTuple):
    """Natural logarithms of the model's own distribution: before penalties, biases and temperature."""

    logprob: float  # of the token that was chosen
    top: tuple[tuple[int, float], ...]  # the likeliest ids, best first, as many as were asked for
    rank: int = 0  # of a prompt's token: 1 for the likeliest of all; 0: not told


class PromptScoring(NamedTuple):
    """Which tokens of a prompt are to be told how likely they were behind those before them."""

    first: int  # of them; at least 1, for nothing is before a prompt's first token
    num_top: int  # alternatives to each

    def after(self, num_told: int) -> "PromptScoring":
        """Return what is left when so many tokens were told."""
        return self._replace(first=self.first + num_told)
