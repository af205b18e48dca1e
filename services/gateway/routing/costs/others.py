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
    idle = 1 - np.minimum(rows["busy"], MOST_BUSY)
    num_later = rows["arrivals_per_s"] * (rows["queued_s"] + seconds) / idle
    return np.asarray(seconds * num_later)


def stall_s(rows: Rows, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what running requests wait longer, together, for their next tokens: weighed."""
    return np.asarray(STALL_WEIGHT * rows["running"] * seconds)
