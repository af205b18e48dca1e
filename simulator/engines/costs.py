"""What the steps of simulated engines take. Pure."""

from typing import Protocol

from shared.step_profile import StepProfile


class StepTime(Protocol):
    """Seconds of a step as a function of what is in it. `StepProfile`, which workers publish, is one."""

    def step_s(
        self, num_tokens: float = 0.0, num_pairs: float = 0.0, num_rows: float = 0.0, context_tokens: float = 0.0
    ) -> float:
        """Return the seconds of one step: prompt tokens, pairs of one and a token that it sees, rows, their contexts.

        Between two leaps of a decode worker it is taken to be linear in the context.
        """


def whole_prompt_profile(coefficients: tuple[float, float, float], unit_tokens: float = 1.0) -> StepProfile:
    """Return the profile of a prefill time `c0 + c1 l + c2 l^2` with l in units, for prompts computed in one step.

    n tokens make n (n + 1) / 2 pairs, so that a pair costs twice the quadratic coefficient.
    """
    constant, linear, quadratic = coefficients
    pair_s = 2 * quadratic / unit_tokens**2
    return StepProfile(constant, linear / unit_tokens - pair_s / 2, pair_s)
