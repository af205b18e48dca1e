"""What instances of a cluster do, by the measurements of its workers. Pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.gateway.cluster.workers import Rows
from services.gateway.routing.costs.steps import prefill_s
from services.gateway.routing.planning.case import DecodePoint


@dataclass(frozen=True, slots=True, eq=False)
class PooledPrefill:
    """The prefill time of an instance of a cluster whose workers differ: a profile, by uncached tokens.

    So many instances of this time have the rate that the workers have together. Each prompt has a cached prefix of the
    mean length, which its uncached tokens attend to.
    """

    rows: Rows  # [n] of `WORKER`, at least one
    cached_tokens: float = 0.0

    def __call__(self, tokens: NDArray[np.float64], /) -> NDArray[np.float64]:
        first, end = np.full_like(tokens, self.cached_tokens), self.cached_tokens + tokens
        per_s = np.zeros_like(tokens)
        with np.errstate(divide="ignore"):  # a prompt that takes no time: plans refuse such a profile
            for row in range(len(self.rows)):
                per_s += 1 / prefill_s(self.rows[row : row + 1], first, end)
        return np.asarray(len(self.rows) / per_s)


def is_measured(rows: Rows) -> NDArray[np.bool_]:
    """Return which workers have measured their steps, and do not repeat a prior."""
    return np.asarray(rows["profile_steps"] >= 1)


def best_known(rows: Rows) -> Rows:
    """Return the workers that have measured, or all if none has."""
    measured = is_measured(rows)
    return rows[measured] if measured.any() else rows


def decode_point(rows: Rows, context_tokens: float, step_s: float, max_batch: int) -> DecodePoint:
    """Return the batch at which a step of a decode instance takes `step_s`, or what limits it earlier.

    The limits are `max_batch`, the worker's KV memory, and one request where even that takes longer. Instances of this
    point have the rate that the workers have together. Raises ValueError for steps that take no time.
    """
    request_s = rows["row_s"] + rows["context_s"] * context_tokens
    by_time = np.floor(
        np.divide(step_s - rows["base_s"], request_s, out=np.full(len(rows), np.inf), where=request_s > 0)
    )
    by_memory = np.floor(_memory_tokens(rows) / max(1.0, context_tokens))
    batch = np.clip(np.minimum(by_time, by_memory), 1, max_batch)
    with np.errstate(divide="ignore"):
        rate_per_s = float(np.mean(batch / (rows["base_s"] + request_s * batch)))
    size = max(1, round(float(np.mean(batch))))
    return DecodePoint(size, size / rate_per_s)


def _memory_tokens(rows: Rows) -> NDArray[np.float64]:
    free_share = 1 - rows["kv_usage"]
    return np.asarray(np.divide(rows["free_tokens"], free_share, out=np.full(len(rows), np.inf), where=free_share > 0))
