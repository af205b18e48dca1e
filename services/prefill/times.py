"""When one prompt came how far on this worker, for whoever shows it."""

import time
from collections.abc import Callable

from shared.engine.batching import Ready
from shared.timings import LayerMarks, PrefillTimings


class PromptTimes:
    """Filled in along one Prefill call; each phase is marked once, when it ends."""

    def __init__(self, num_layers: int, began_at: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`began_at`: on `clock`, when the call was taken."""
        self._began_at = began_at
        self._clock = clock
        self._computed = LayerMarks(num_layers, began_at, clock)
        self._sent = LayerMarks(num_layers, began_at, clock)
        self._is_launched = False
        self._turn_s = self._reserved_s = self._ready_s = self._computed_s = 0.0

    def turn_came(self) -> None:
        self._turn_s = self._now_s()

    def reserved(self) -> None:
        self._reserved_s = self._now_s()

    def ready(self) -> None:
        """Note that what exists is in the pages."""
        self._ready_s = self._now_s()

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

    def timings(self, reused_blocks: int, num_entries_sent: int) -> PrefillTimings:
        """Return all of it; the pool has everything now."""
        return PrefillTimings(
            turn_s=self._turn_s,
            reserved_s=self._reserved_s,
            ready_s=self._ready_s,
            reused_blocks=reused_blocks,
            computed=self._computed.times(),
            sent=self._sent.times() if num_entries_sent else PrefillTimings().sent,
            num_entries_sent=num_entries_sent,
            computed_s=self._computed_s,
            stored_s=self._now_s(),
            is_launched=self._is_launched,
        )

    def _now_s(self) -> float:
        return self._clock() - self._began_at
