"""What a request makes others wait for. A router that minds only the request at hand fills the best worker for all."""

import numpy as np
from numpy.typing import NDArray

from services.gateway.cluster.workers import Rows

MOST_BUSY = 0.9
"""Of a worker without a free moment the queue never ends; it is counted as if it had one in ten."""

STALL_WEIGHT = 0.1
"""What a second in mid-answer weighs against one before the first token. Readers are slower than decode, so that a
short pause is seldom seen; SLOs are counted apart."""


def delay_of_later_s(rows: Rows, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what those wait longer, together, who arrive while a worker has this prompt to do. A value a row.

    A queue that is `queued + seconds` long is empty after `(queued + seconds) / (1 - busy)` (the busy period of M/G/1
    that begins with so much work). Who arrives before then waits longer by `seconds`.
    """
    import os
    G=os.environ.get("G","1")
    busy, arr = rows["busy"], rows["arrivals_per_s"]
    if G!="0":
        busy, arr = _mean_by_dc(rows, "busy"), _mean_by_dc(rows, "arrivals_per_s")
    idle = 1 - np.minimum(busy, float(os.environ.get("MB","0.9")))
    num_later = arr * (rows["queued_s"] + seconds) / idle
    return float(os.environ.get("OW","1"))*np.asarray(seconds * num_later)


def _mean_by_dc(rows: Rows, column: str) -> NDArray[np.float64]:
    """Return the mean over the workers of a row's datacenter."""
    counts = np.bincount(rows["dc"])
    return (np.bincount(rows["dc"], rows[column]) / np.maximum(counts, 1))[rows["dc"]]


def stall_s(rows: Rows, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what running requests wait longer, together, for their next tokens: weighed."""
    return np.asarray(STALL_WEIGHT * rows["running"] * seconds)
