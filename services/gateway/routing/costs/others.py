"""What a request makes others wait for. A router that minds only the request at hand fills the best worker for all."""

import numpy as np
from numpy.typing import NDArray

from services.gateway.cluster.workers import Rows

MOST_BUSY = 0.9
"""Of a worker without a free moment the queue never ends; it is counted as if it had one in ten."""

LEAST_BUSY = 0.05
"""A worker that is less busy makes nobody wait to speak of."""

LATER_S = 10.0
"""A worker that is free this many seconds later than the first of its datacenter makes others wait 1/e as much: by then
a burst may be over. What is late in any case is collected there, and the workers beside it stay free for the rest."""

STALL_WEIGHT = 0.1
"""What a second in mid-answer weighs against one before the first token. Readers are slower than decode, so that a
short pause is seldom seen; SLOs are counted apart."""


def delay_of_later_s(rows: Rows, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what those wait longer, together, who arrive while a worker has this prompt to do. A value a row.

    Who arrives later goes where the queue is shortest: the workers of a datacenter are filled like vessels that are
    connected, up to a level. Of k workers this prompt raises it by `seconds / k`. A queue of that height is empty after
    `(level + seconds / k) / (1 - busy)` (the busy period of M/G/1 that begins with so much work), and all who arrive
    before then wait longer. A worker above the level is asked for nothing until the others are as high: see `LATER_S`.

    Arrivals at random find a worker busy as often as it is; a client that asks again when it has its answer never
    does, and waits for nobody.
    """
    dc, queued = rows["dc"], rows["queued_s"]
    num_workers = np.bincount(dc)[dc]
    levels = np.full(dc.max(initial=-1) + 1, np.inf)
    np.minimum.at(levels, dc, queued)
    level = levels[dc]
    num_later = _at_random(rows) * _mean_of_dc(rows, "arrivals_per_s") * (level + seconds / num_workers)
    return np.asarray(seconds * num_later / (1 - _busy(rows)) * np.exp((level - queued) / LATER_S))


def delay_on_way_s(rows: Rows, way_s: NDArray[np.float64], there_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what those wait longer, together, whose blocks come over the same link later. A value a prefill worker.

    The link is one more queue: this prompt takes `way_s` of it, and it is empty again after `there_s`, if nobody came.
    All who are prefilled in the worker's datacenter use it, with prompts that are taken to be like this one.
    """
    arrivals = _arrivals_of_dc(rows)
    busy = np.minimum(arrivals * way_s, MOST_BUSY)
    return np.asarray(way_s * _at_random(rows) * arrivals * there_s / (1 - busy))


def on_shared_way(rows: Rows, way_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how many times longer a prompt's blocks take because later ones come beside them. A value a worker.

    Transfers share a link: one of length x takes `x / (1 - busy)` on average (M/G/1 with processor sharing).
    """
    busy = np.minimum(_at_random(rows) * _arrivals_of_dc(rows) * way_s, MOST_BUSY)
    return np.asarray(1 / (1 - busy))


def _arrivals_of_dc(rows: Rows) -> NDArray[np.float64]:
    return np.asarray(np.bincount(rows["dc"], rows["arrivals_per_s"])[rows["dc"]])


def _at_random(rows: Rows) -> NDArray[np.float64]:
    """Return how far arrivals at workers are at random, 0 to 1: then they find a worker busy as often as it is."""
    return np.asarray(np.minimum(_mean_of_dc(rows, "seen_busy") / np.maximum(_busy(rows), LEAST_BUSY), 1.0))


def _busy(rows: Rows) -> NDArray[np.float64]:
    return np.asarray(np.minimum(_mean_of_dc(rows, "busy"), MOST_BUSY))


def _mean_of_dc(rows: Rows, column: str) -> NDArray[np.float64]:
    """Return a figure's mean over the workers of each row's datacenter.

    One worker sees too few prompts in a few seconds to tell how many will come. All of a datacenter see more, and what
    comes is shared among them.
    """
    sums = np.bincount(rows["dc"], rows[column])
    return np.asarray((sums / np.maximum(np.bincount(rows["dc"]), 1))[rows["dc"]])


def stall_s(rows: Rows, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what running requests wait longer, together, for their next tokens: weighed."""
    return np.asarray(STALL_WEIGHT * rows["running"] * seconds)
