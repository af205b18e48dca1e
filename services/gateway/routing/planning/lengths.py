"""How long requests are: distributions of uncached input lengths, and expectations over them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(8)
"""Gauss-Legendre nodes of one panel: exact for polynomials up to degree 15."""
PANELS = 256
"""Panels over the whole range of a log-normal distribution, of equal width in the logarithm of the length."""
SIGMAS = np.linspace(-8.0, 8.0, 65)
"""More panels where a narrow log-normal distribution has its mass, in its standard deviations."""


class PartialSums(NamedTuple):
    """E[f(L); L <= t] and E[f(L); L > t] for each threshold t. Neither is conditional: divide by the share of each."""

    below: NDArray[np.float64]  # [thresholds]
    above: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WeightedLengths:
    """Lengths with weights that add up to one: observations, or the nodes of a numerical integral."""

    tokens: NDArray[np.float64]  # [n], ascending
    weights: NDArray[np.float64]  # [n]

    def mean(self, values: NDArray[np.float64]) -> float:
        """Return E[f(L)] of a function's `values` at the lengths."""
        return float(self.weights @ values)

    def split(self, values: NDArray[np.float64], thresholds: NDArray[np.float64]) -> PartialSums:
        """Return the partial expectations of a function's `values` at the lengths.

        Both sides are sums of their own: the difference of one from the whole would lose a small side to rounding.
        """
        terms = self.weights * values
        at = np.searchsorted(self.tokens, thresholds, side="right")
        below = np.concatenate(([0.0], np.cumsum(terms)))
        above = np.concatenate((np.cumsum(terms[::-1])[::-1], [0.0]))
        return PartialSums(below[at], above[at])

    def quantile(self, values: NDArray[np.float64], share: float) -> float:
        """Return the least of a function's `values` that at least `share` of the requests do not exceed."""
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(self.weights[order])
        at = int(np.searchsorted(reached, share * reached[-1] * (1 - 1e-12)))
        return float(values[order[min(at, len(order) - 1)]])


class LengthDistribution(Protocol):
    """The distribution of L, the uncached input length of a request, in tokens."""

    @property
    def max_tokens(self) -> float:
        """The longest request: nothing lies above it."""

    def weighted(self, breaks: NDArray[np.float64]) -> WeightedLengths:
        """Return lengths and weights that give expectations of functions that are smooth but at `breaks`.

        A partial expectation is as exact as a whole one if its threshold is among the breaks.
        """


@dataclass(frozen=True, slots=True)
class TruncatedLogNormal:
    """ln L is normal with mean `mu` and deviation `sigma`, given that `min_tokens` <= L <= `max_tokens`."""

    mu: float
    sigma: float
    min_tokens: float
    max_tokens: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.mu):
            raise ValueError("mu must be finite")
        if not 0 < self.sigma < math.inf:
            raise ValueError("sigma must be positive")
        if not 0 < self.min_tokens < self.max_tokens < math.inf:
            raise ValueError("min_tokens must be positive and less than max_tokens")

    def weighted(self, breaks: NDArray[np.float64]) -> WeightedLengths:
        """Integrate by Gauss-Legendre panels in ln L, none of which a break or the bulk's edge divides."""
        low, high = math.log(self.min_tokens), math.log(self.max_tokens)
        inner = breaks[(breaks > self.min_tokens) & (breaks < self.max_tokens)]
        bulk = np.clip(self.mu + self.sigma * SIGMAS, low, high)
        edges = np.unique(np.concatenate((np.linspace(low, high, PANELS + 1), np.log(inner), bulk)))
        half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
        logs = (middle[:, None] + half[:, None] * NODES).ravel()
        # Relative to the largest exponent: far from the mean every density alone would be rounded to zero.
        exponents = -(((logs - self.mu) / self.sigma) ** 2) / 2
        weights = np.exp(exponents - exponents.max()) * (half[:, None] * NODE_WEIGHTS).ravel()
        return WeightedLengths(np.exp(logs), weights / weights.sum())


@dataclass(frozen=True, slots=True)
class EmpiricalLengths:
    """Observed lengths, each with the number of requests that had it. Expectations are exact sums."""

    tokens: tuple[float, ...]  # ascending, positive
    counts: tuple[float, ...]  # positive

    def __post_init__(self) -> None:
        if not self.tokens or len(self.tokens) != len(self.counts):
            raise ValueError("there must be at least one length, and a count for each")
        if any(after <= before for before, after in zip((0.0, *self.tokens), self.tokens, strict=False)):
            raise ValueError("lengths must be positive and ascend")
        if not all(0 < count < math.inf for count in self.counts):
            raise ValueError("counts must be positive")

    @classmethod
    def of(cls, lengths: Iterable[float]) -> "EmpiricalLengths":
        """Count the lengths of single requests, in any order."""
        tokens, counts = np.unique(np.fromiter(lengths, np.float64), return_counts=True)
        return cls(tuple(tokens.tolist()), tuple(counts.tolist()))

    @classmethod
    def of_histogram(cls, counts: Mapping[float, float]) -> "EmpiricalLengths":
        """Take a histogram as a running gateway keeps it: the number of requests, or their faded weight, by length."""
        present = sorted((tokens, count) for tokens, count in counts.items() if count)
        return cls(tuple(tokens for tokens, _ in present), tuple(count for _, count in present))

    @property
    def max_tokens(self) -> float:
        return self.tokens[-1]

    def weighted(self, breaks: NDArray[np.float64]) -> WeightedLengths:
        counts = np.array(self.counts, np.float64)
        return WeightedLengths(np.array(self.tokens, np.float64), counts / counts.sum())
