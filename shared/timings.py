"""When things happened to one call on one engine, in seconds since the call began there. Data and its collector."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

NEVER_S = -1.0
"""Stands for what did not happen."""

MAX_LAYERS = 512
"""Layers that timings tell of at most; a model has fewer."""


class LayerTimes(NamedTuple):
    """The first and the last time that something happened in each layer, in seconds; `NEVER_S`: it did not.

    Both are parallel, by layer, and empty where nothing happened in any layer.
    """

    first_s: Sequence[float] = ()
    last_s: Sequence[float] = ()


NO_LAYERS = LayerTimes()


class PrefillTimings(NamedTuple):
    """One Prefill call on its worker. Seconds since the worker took the call."""

    turn_s: float = 0.0  # no other prompt computes the same beginning any more
    reserved_s: float = 0.0  # pages are reserved
    ready_s: float = 0.0  # what exists is in the pages: computing may begin
    reused_blocks: int = 0  # leading ones that existed
    computed: LayerTimes = NO_LAYERS  # first: a layer's first chunk is through it; last: its last one
    sent: LayerTimes = NO_LAYERS  # entries of a layer have been sent to the pool
    num_entries_sent: int = 0
    computed_s: float = 0.0  # all is computed
    stored_s: float = 0.0  # the pool has everything
    is_launched: bool = False  # on a GPU `computed` says when layers were launched: the device is behind that


class DecodeTimings(NamedTuple):
    """One Generate call on its worker, until its first token. Seconds since the worker took the call."""

    admitted_s: float = 0.0  # pages are reserved, and what the device lacks is asked for
    landed: LayerTimes = NO_LAYERS  # entries of a layer have landed in the pages
    fetched_bytes: int = 0  # of entries that were asked for, before any codec
    gate_opened_s: float = 0.0  # the tail's first layer could run
    computed_s: float = 0.0  # the tail is computed
    computed_tokens: int = 0  # of the tail


class LayerMarks:
    """Collects `LayerTimes` while they happen: two numbers a layer, however often it is noted."""

    def __init__(self, num_layers: int, began_at: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`began_at`: on `clock`, when the call began."""
        self._began_at = began_at
        self._clock = clock
        self._first_s = [NEVER_S] * num_layers
        self._last_s = [NEVER_S] * num_layers
        self._is_empty = True

    def note(self, layers: Iterable[int]) -> None:
        """Note that it happens in these layers now."""
        now_s = self._clock() - self._began_at
        for layer in layers:
            self._is_empty = False
            self._last_s[layer] = now_s
            if self._first_s[layer] < 0:
                self._first_s[layer] = now_s

    def times(self) -> LayerTimes:
        """Return what was noted so far."""
        return NO_LAYERS if self._is_empty else LayerTimes(tuple(self._first_s), tuple(self._last_s))
