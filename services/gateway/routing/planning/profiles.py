"""Quantities that depend on a prompt's length: prefill time in seconds, KV in bytes, KV throughput in Gbit/s."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class LengthProfile(Protocol):
    """A positive quantity as a function of uncached tokens. Pure: equal lengths give equal values."""

    def __call__(self, tokens: NDArray[np.float64], /) -> NDArray[np.float64]:
        """Return the quantity at each length, in the shape of `tokens`."""


@dataclass(frozen=True, slots=True)
class PolynomialProfile:
    """A polynomial in `tokens / unit_tokens`, its constant term first."""

    coefficients: tuple[float, ...]
    unit_tokens: float = 1.0

    def __post_init__(self) -> None:
        if not self.coefficients or not all(map(math.isfinite, self.coefficients)):
            raise ValueError("a polynomial needs finite coefficients, at least one")
        if not 0 < self.unit_tokens < math.inf:
            raise ValueError("the unit of a polynomial must be a positive number of tokens")

    def __call__(self, tokens: NDArray[np.float64], /) -> NDArray[np.float64]:
        return np.asarray(np.polynomial.polynomial.polyval(tokens / self.unit_tokens, self.coefficients), np.float64)

    @classmethod
    def fit(cls, tokens: Sequence[float], values: Sequence[float], degree: int) -> "PolynomialProfile":
        """Fit measured values by least squares of their relative errors. Raises ValueError for too few of them."""
        table = TabulatedProfile(tuple(tokens), tuple(values))
        if not 0 <= degree < len(table.tokens):
            raise ValueError(f"{len(table.tokens)} values determine no polynomial of degree {degree}")
        unit = max(table.tokens)
        units, weights = np.array(table.tokens) / unit, 1 / np.array(table.values)
        fitted = np.polynomial.polynomial.polyfit(units, np.array(table.values), degree, w=weights)
        return cls(tuple(map(float, fitted)), unit)


@dataclass(frozen=True, slots=True)
class TabulatedProfile:
    """Measured values with straight lines between them.

    A shorter length than the first has the first value. Beyond the last length the last line goes on, which is too low
    for a quantity that grows faster than its length, such as prefill time.
    """

    tokens: tuple[float, ...]  # ascending
    values: tuple[float, ...]  # positive, one for each length

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.values):
            raise ValueError(f"{len(self.tokens)} lengths have {len(self.values)} values")
        if len(self.tokens) < 2:
            raise ValueError("a table needs two lengths or more")
        if any(after <= before for before, after in zip(self.tokens, self.tokens[1:], strict=False)):
            raise ValueError("the lengths of a table must ascend")
        if not all(0 < value < math.inf for value in self.values):
            raise ValueError("the values of a table must be positive")

    def __call__(self, tokens: NDArray[np.float64], /) -> NDArray[np.float64]:
        inside = np.interp(tokens, self.tokens, self.values)
        slope = (self.values[-1] - self.values[-2]) / (self.tokens[-1] - self.tokens[-2])
        beyond = np.maximum(np.asarray(tokens, np.float64) - self.tokens[-1], 0.0)
        return np.asarray(inside + slope * beyond, np.float64)


@dataclass(frozen=True, slots=True)
class ScaledProfile:
    """Another profile times a factor: hardware that is known only as so many times slower, KV in other units."""

    profile: LengthProfile
    factor: float

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ValueError("the factor of a profile must be positive")

    def __call__(self, tokens: NDArray[np.float64], /) -> NDArray[np.float64]:
        return self.factor * self.profile(tokens)


LEAST = 1e-15
"""The least value of a quantity, in its own unit: a smaller one is taken for none."""


def require_positive(profile: LengthProfile, tokens: NDArray[np.float64]) -> None:
    """Raise ValueError, which names a length, if a profile is not positive and finite at all of `tokens`."""
    values = profile(tokens)
    wrong = ~(np.isfinite(values) & (values >= LEAST))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(f"must be positive, but is {values[first]:g} at {tokens[first]:,.0f} tokens")
