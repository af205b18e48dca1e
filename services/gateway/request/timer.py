"""How long one choice took: until its turn, its first token, between tokens, in all; and whether its SLO was met."""

import time
from collections.abc import Callable

from services.gateway.metrics import GatewayMetrics
from services.gateway.routing.plan import NO_SLO, Slo
from services.gateway.timeline.record import ChoiceNote


class RequestTimer:
    """Times one choice. Methods are called in their order here, and may never be."""

    def __init__(
        self,
        metrics: GatewayMetrics,
        note: ChoiceNote,
        slo: Slo = NO_SLO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`note` knows when the choice had its turn, and is told of tokens. `slo`: what is asked for, from now on."""
        self._metrics = metrics
        self._note = note
        self._slo = slo
        self._clock = clock
        self._began_at = clock()
        self._first_at: float | None = None
        self._last_at = 0.0
        self._num_tokens = 0

    def tokens(self, num_tokens: int) -> None:
        """Note that tokens have arrived."""
        if num_tokens == 0:
            return
        now = self._clock()
        self._note.tokens.add(now, num_tokens)
        if self._first_at is None:
            self._first_at = now
            self._first(now)
        else:
            self._metrics.inter_token_s.observe((now - self._last_at) / num_tokens)
        self._last_at = now
        self._num_tokens += num_tokens

    def finished(self) -> None:
        """Note that the client's side has the last token."""
        self._metrics.e2e_s.observe(self._clock() - self._began_at)
        if self._first_at is None:
            return
        if self._note.passed_at is not None:
            self._metrics.inference_s.observe(self._last_at - self._note.passed_at)
        self._metrics.decode_s.observe(self._last_at - self._first_at)
        if self._num_tokens > 1:
            per_token_s = (self._last_at - self._first_at) / (self._num_tokens - 1)
            self._metrics.per_token_s.observe(per_token_s)
            self._settle("tpot", self._slo.time_per_output_token_s, per_token_s)

    def _first(self, now: float) -> None:
        self._metrics.ttft_s.observe(now - self._began_at)
        self._settle("ttft", self._slo.ttft_s, now - self._began_at)
        if self._note.passed_at is not None:
            self._metrics.prefill_s.observe(now - self._note.passed_at)

    def _settle(self, objective: str, asked_s: float | None, got_s: float) -> None:
        if asked_s is not None:
            self._metrics.slo_settled(objective, is_met=got_s <= asked_s)
