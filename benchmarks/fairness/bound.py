"""The least that a victim waits beside a flood: a step that is under way when it comes is not interrupted. Pure."""

from collections.abc import Sequence

PARTS = 100


def beside_steps(alone_s: Sequence[float], step_s: float) -> list[float]:
    """Return times to the first token of requests that come at any moment of the flood's steps, equally likely.

    Each takes as long as one of `alone_s` once the step in hand is over. What the rows of the flood's running requests
    add to the victim's own steps is not counted.
    """
    return [alone + step_s * (part + 0.5) / PARTS for alone in alone_s for part in range(PARTS)]
