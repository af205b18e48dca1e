"""One moment of the cluster and its requests as text, made once for all who watch."""

import json
import time
from collections.abc import Callable
from typing import Any

from services.gateway.cluster.registry import Registry
from services.gateway.live.cluster import cluster_of
from services.gateway.timeline.shown import summary_of
from services.gateway.timeline.timelines import Timelines
from shared.ids import Datacenter

Json = dict[str, Any]

EVERY_S = 0.5
"""Engines and pools report as often."""

MAX_REQUESTS = 64
"""Requests that one moment tells of: those that run and those that have ended since `ENDED_S` ago, newest first."""

ENDED_S = 3.0

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class LiveState:
    """Knows how to say what is; keeps the latest text for whoever asks within `EVERY_S` of it."""

    def __init__(
        self,
        registry: Registry,
        timelines: Timelines,
        plan: Callable[[], Json | None],
        home: Datacenter,
        model_name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`plan` returns what `GET /v1/plan` would, or None before the controller's first look."""
        self._registry = registry
        self._timelines = timelines
        self._plan = plan
        self._home = home
        self._model_name = model_name
        self._clock = clock
        self._made_at = -EVERY_S
        self._text = ""

    def text(self) -> str:
        """Return the state as JSON in one line."""
        now = self._clock()
        if now - self._made_at >= EVERY_S * 0.9:  # whoever sleeps for `EVERY_S` may wake a little early
            self._text, self._made_at = _encode(self._moment(now)), now
        return self._text

    def _moment(self, now: float) -> Json:
        changed = self._timelines.changed_since(now - ENDED_S)
        return {
            "object": "live",
            "at": round(time.time(), 3),
            "model": self._model_name,
            **cluster_of(self._registry.known(), self._home),
            "requests": {
                "num_running": self._timelines.num_running,
                "num_taken": self._timelines.num_taken,
                "changed": [summary_of(timeline, now) for timeline in changed[:MAX_REQUESTS]],
                "num_left_out": max(0, len(changed) - MAX_REQUESTS),
            },
            "plan": self._plan(),
        }
