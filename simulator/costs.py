"""What the steps of simulated engines take, and how many bytes a prompt's KV has. Pure."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from shared.kv.layout import KvLayout, LayerSpec
from shared.step_profile import StepProfile


class StepCost(Protocol):
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


@dataclass(frozen=True)
class KvSize:
    """How much KV a prompt has, and in which blocks pools and routers count it.

    `fixed_bytes` cross a link once for each prompt, as the state of linear attention does; the store and the router
    know of the blocks alone.
    """

    bytes_per_token: float
    block_tokens: int = 512
    fixed_bytes: float = 0.0

    @cached_property
    def layout(self) -> KvLayout:
        """One layer of full attention whose entries have as many bytes as a block; rounded to 4 bytes a token."""
        head_dim = max(1, round(self.bytes_per_token / 4))
        return KvLayout((LayerSpec(None, 1, head_dim),), "bfloat16", self.block_tokens)

    def bytes_of(self, num_tokens: float) -> float:
        """Return the bytes of so many tokens that are computed together; none for none."""
        return self.fixed_bytes + self.bytes_per_token * num_tokens if num_tokens > 0 else 0.0
