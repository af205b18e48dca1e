"""Early rejection: a request that is predicted to miss what it asks for is told when to come back. Pure.

The prediction is for the time at which the request would be served, not for now: see `rows`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from services.gateway.routing.plan import Slo
from shared.errors import Overloaded

Reason = Literal["requests", "queue", "ttft", "tpot"]
"""Why requests are rejected: too many run, too many wait, or a latency would be missed."""


class Rejected(Overloaded):
    """A request that is not taken in."""

    retriable = False  # another worker is no help: the gateway has looked at all of them
    reason: ClassVar[Reason]


class QueueFull(Rejected):
    code = "queue_full"
    reason = "queue"


class TtftUnmet(Rejected):
    code = "slo_ttft_unmet"
    reason = "ttft"


class TimePerOutputTokenUnmet(Rejected):
    code = "slo_tpot_unmet"
    reason = "tpot"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a request would get if it were taken in now. Seconds."""

    ttft_s: float  # with the wait at the gateway
    alone_s: float  # until the first token on an idle worker, at least
    time_per_output_token_s: float  # when the prompt is done
    calmer_in_s: float | None = None  # until the time per output token is what is asked for; None: not to be foreseen


def check_slo(slo: Slo, expected: Prediction) -> None:
    """Raise `TtftUnmet` or `TimePerOutputTokenUnmet` when a request would miss its objective."""
    if slo.ttft_s is not None and expected.ttft_s > slo.ttft_s:
        retry_after_s = expected.ttft_s - slo.ttft_s if expected.alone_s <= slo.ttft_s else None
        raise TtftUnmet(
            f"the first token is expected after {_text(expected.ttft_s)} s; {_text(slo.ttft_s)} s were asked for",
            retry_after_s=retry_after_s,
        )
    per_token_s = expected.time_per_output_token_s
    if slo.time_per_output_token_s is not None and per_token_s > slo.time_per_output_token_s:
        asked_s = slo.time_per_output_token_s
        raise TimePerOutputTokenUnmet(
            f"an output token is expected to take {_text(per_token_s)} s; {_text(asked_s)} s were asked for",
            retry_after_s=expected.calmer_in_s,
        )


def rows_too_many(slo_s: float, per_token_s: float, row_s: float) -> int | None:
    """Return how many rows a batch has to lose until a token takes `slo_s`; None when nobody knows what a row takes."""
    return math.ceil((per_token_s - slo_s) / row_s) if row_s > 0 else None


def _text(seconds: float) -> str:
    return f"{seconds:.3g}"
