"""What a request can be told about how likely its tokens were. No torch: the gateway shapes it."""

from typing import NamedTuple

MAX_LOGPROBS = 20
"""Alternatives to a token that a request may ask for."""


class TokenLogprobs(NamedTuple):
    """Natural logarithms of the model's own distribution: before penalties, biases and temperature."""

    logprob: float  # of the token that was chosen
    top: tuple[tuple[int, float], ...]  # the likeliest ids, best first, as many as were asked for
