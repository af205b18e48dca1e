"""Prefill deflection (arXiv 2607.02043): decode computes a prompt when that is sooner and nobody's tokens are late.

For each decode worker the largest chunk is sought whose step still keeps the time between tokens (TBT). The prompt's
TTFT there, in chunks of that size, is compared with its TTFT on the best prefill worker, with queue and transfer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.gateway.routing.costs.candidates import handed_over
from services.gateway.routing.costs.steps import admission_s, prompt_only_s, step_s, turn_s
from services.gateway.routing.costs.transfer import Transfers, everybody
from services.gateway.routing.facts import Facts
from services.gateway.routing.policy import Decision, ranked


@dataclass(frozen=True, slots=True)
class Deflection:
    """Prefills on the worker that is soonest done, unless the best decode worker is sooner within its TBT.

    The TBT is the request's SLO of time per output token, or else `tbt_s`. Workers cut steps themselves, so that the
    schedule of chunks is estimated here and not imposed on them.
    """

    tbt_s: float = 0.05
    margin: float = 0.0  # by what part decode has to be sooner

    def decide(self, facts: Facts) -> Decision:
        alone = self._ttft_on_decode_s(facts)
        decode = int(np.argmin(alone))
        if not len(facts.prefill) or facts.is_cached:
            return Decision(decode if np.isfinite(alone[decode]) else self._idlest(facts))
        (handed,) = handed_over(Transfers(facts), [[everybody(facts)] * len(facts.dcs)])
        if alone[decode] < (1 - self.margin) * float(handed.ttft_s.min()):
            return Decision(decode)
        return Decision(int(handed.decode[0]), ranked(handed.ttft_s))

    def _ttft_on_decode_s(self, facts: Facts) -> NDArray[np.float64]:
        """Return the TTFT on each decode worker; infinite where no chunk at all keeps the TBT."""
        rows, num_tokens = facts.decode.rows, facts.request.num_tokens
        first = min(facts.num_usable * facts.layout.block_tokens, num_tokens - 1)
        limit = facts.request.slo.time_per_output_token_s or self.tbt_s
        spare_s = limit - step_s(rows, 1, num_tokens)
        chunk = np.minimum(rows["step_tokens"], spare_s / (rows["token_s"] + rows["pair_s"] * num_tokens))
        num_steps = np.ceil((num_tokens - first) / np.maximum(chunk, 1.0))
        waiting = turn_s(rows, first, num_tokens, facts.layout.block_tokens) + admission_s(rows, num_tokens)
        seconds = waiting + num_steps * step_s(rows) + prompt_only_s(rows, first, num_tokens)
        return np.where(chunk >= 1, seconds, np.inf)

    def _idlest(self, facts: Facts) -> int:
        return int(np.argmin(step_s(facts.decode.rows)))
