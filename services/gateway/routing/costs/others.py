"""What a request makes others wait for. A router that minds only the request at hand fills the best worker for all."""

import numpy as np
from numpy.typing import NDArray

from services.gateway.cluster.workers import Rows

MOST_BUSY = 0.9
"""Of a worker without a free moment the queue never ends; it is counted as if it had one in ten."""

LEAST_BUSY = 0.05
"""A worker that is less busy makes nobody wait to speak of."""

STALL_WEIGHT = 0.1
"""What a second in mid-answer weighs against one before the first token. Readers are slower than decode, so that a
short pause is seldom seen; SLOs are counted apart."""


def delay_of_later_s(rows: Rows, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what those wait longer, together, who arrive while a worker has this prompt to do. A value a row.

    A queue that is `queued + seconds` long is empty after `(queued + seconds) / (1 - busy)` (the busy period of M/G/1
    that begins with so much work). Who arrives before then waits longer by `seconds`. Arrivals at random find a worker
    busy as often as it is; a client that asks again when it has its answer never does, and waits for nobody.
    """
    busy = np.minimum(rows["busy"], MOST_BUSY)
    num_later = _at_random(rows) * rows["arrivals_per_s"] * (rows["queued_s"] + seconds) / (1 - busy)
    return np.asarray(seconds * num_later)


def delay_on_way_s(rows: Rows, way_s: NDArray[np.float64], there_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what those wait longer, together, whose blocks come over the same link later. A value a prefill worker.

    The link is one more queue: this prompt takes `way_s` of it, and it is empty again after `there_s`, if nobody came.
    All who are prefilled in the worker's datacenter use it, with prompts that are taken to be like this one.
    """
    dc = rows["dc"]
    arrivals, at_random = np.zeros(dc.max() + 1), np.zeros(dc.max() + 1)
    np.add.at(arrivals, dc, rows["arrivals_per_s"])
    np.maximum.at(at_random, dc, _at_random(rows))
    busy = np.minimum(arrivals[dc] * way_s, MOST_BUSY)
    return np.asarray(way_s * at_random[dc] * arrivals[dc] * there_s / (1 - busy))


def _at_random(rows: Rows) -> NDArray[np.float64]:
    """Return how far arrivals at workers are at random, 0 to 1: then they find a worker busy as often as it is."""
    busy = np.minimum(rows["busy"], MOST_BUSY)
    return np.asarray(np.minimum(rows["seen_busy"] / np.maximum(busy, LEAST_BUSY), 1.0))


def stall_s(rows: Rows, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what running requests wait longer, together, for their next tokens: weighed."""
    return np.asarray(STALL_WEIGHT * rows["running"] * seconds)
