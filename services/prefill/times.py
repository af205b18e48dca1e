"""When one prompt came how far on this worker, for whoever shows it."""

import time
from collections.abc import Callable

from shared.engine.batching import Ready
from shared.telemetry.spans import NO_SPAN, TraceSpan, named
from shared.timings import LayerMarks, PrefillTimings

MAX_CHUNKS = 64
"""Chunks of a prompt that are traced at most."""


class PromptTimes:
    """Filled in along one Prefill call; each phase is marked once, when it ends, and is then in the call's trace."""

    def __init__(
        self, num_layers: int, began_at: float, span: TraceSpan = NO_SPAN, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`began_at`: on `clock`, when the call was taken. `span`: the call's."""
        self._began_at = began_at
        self._clock = clock
        self._span = span
        self._chunks: list[tuple[int, float]] = []  # the tokens of the prompt that were done, and when
        self._computed = LayerMarks(num_layers, began_at, clock)
        self._sent = LayerMarks(num_layers, began_at, clock)
        self._is_launched = False
        self._turn_s = self._reserved_s = self._ready_s = self._computed_s = 0.0

    def turn_came(self) -> None:
        self._turn_s = self._now_s()
        self._trace("wait for turn", 0.0, self._turn_s)

    def reserved(self) -> None:
        self._reserved_s = self._now_s()
        self._trace("wait for pages", self._turn_s, self._reserved_s)

    def ready(self, reused_blocks: int) -> None:
        """Note that what exists is in the pages."""
        self._ready_s = self._now_s()
        self._trace("reuse", self._reserved_s, self._ready_s, reused_blocks=reused_blocks)

    def chunk_computed(self, num_tokens: int) -> None:
        """Note that the prompt's first so many tokens are through all layers."""
        if self._span.is_recording and len(self._chunks) < MAX_CHUNKS:
            self._chunks.append((num_tokens, self._now_s()))

    def layer_computed(self, ready: Ready) -> None:
        """Note that a chunk is through a layer; on a GPU, that it will be at a mark."""
        self._is_launched = self._is_launched or ready.mark is not None
        self._computed.note((ready.layer,))

    def layer_sent(self, layer: int) -> None:
        """Note that entries of a layer have been sent."""
        self._sent.note((layer,))

    def computed(self) -> None:
        """Note that nothing is left to be computed."""
        self._computed_s = self._now_s()
        span = self._trace("compute", self._ready_s, self._computed_s, is_launched=self._is_launched)
        began_s = self._ready_s
        for num_tokens, at_s in self._chunks:
            span.past("chunk", self._began_at + began_s, self._began_at + at_s, named(num_tokens=num_tokens))
            began_s = at_s

    def timings(self, reused_blocks: int, num_entries_sent: int) -> PrefillTimings:
        """Return all of it; the pool has everything now."""
        stored_s, sent = self._now_s(), self._sent.times() if num_entries_sent else PrefillTimings().sent
        began_s = min((first_s for first_s in sent.first_s if first_s >= 0.0), default=self._computed_s)
        self._trace("publish", began_s, stored_s, num_entries=num_entries_sent)
        return PrefillTimings(
            turn_s=self._turn_s,
            reserved_s=self._reserved_s,
            ready_s=self._ready_s,
            reused_blocks=reused_blocks,
            computed=self._computed.times(),
            sent=sent,
            num_entries_sent=num_entries_sent,
            computed_s=self._computed_s,
            stored_s=stored_s,
            is_launched=self._is_launched,
        )

    def _trace(self, phase: str, began_s: float, ended_s: float, **facts: int | bool) -> TraceSpan:
        return self._span.past(phase, self._began_at + began_s, self._began_at + ended_s, named(**facts))

    def _now_s(self) -> float:
        return self._clock() - self._began_at
