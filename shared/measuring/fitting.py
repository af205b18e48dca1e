"""Coefficients of a linear cost, learnt from one measurement after another. Pure.

Recursive least squares with directional forgetting (Kulhavy: Restricted exponential forgetting in real-time
identification, 1987) and bounded influence (Huber: Robust estimation of a location parameter, 1964).
"""

import json
import math
from collections.abc import Sequence
from itertools import combinations
from typing import Self

MEMORY = 0.97
"""What is known along a measurement's direction weighs, when the next one of that direction comes."""

MEMORY_OF_CHANGE = 0.5
"""What is known along all directions weighs, while measurements show that what they measure has changed."""

NUM_TO_CHANGE = 5
"""So many outliers in a row, all slower or all quicker than expected, are a change."""

OUTLIER = 3.0
"""An error that is this many times the usual one is an outlier, and has the influence of the largest usual one."""

LEAST_SCALE, MAX_SCALE = 0.01, 1.0
"""Bounds of the usual relative error; it is taken to be the largest at first."""

SCALE_SMOOTHING = 0.1

MAX_RATIO = 100.0
"""Expected and measured seconds differ by this factor at most, as far as the weight of an error goes."""

MAX_FEATURES = 5

Matrix = list[list[float]]


class OnlineFit:
    """Learns `seconds = sum(coefficient * feature)`; no coefficient is negative.

    Errors are relative, to the geometric mean of what was expected and measured: steps of a millisecond count as much
    as those of a second, and twice as long is as wrong as half as long. A measurement replaces older ones of its own
    direction only: what steps have not shown for long stays known, and what they never show apart from other features
    stays near the prior. The prior may be wrong by three times its own size, a step by a tenth: the prior counts as a
    thousandth of a step of each feature alone. When the speed changes, a tenth of the error is left after some twenty
    steps.
    """

    def __init__(self, prior: Sequence[float], strength: float = 0.001) -> None:
        """`prior` has a coefficient for each feature. Raises ValueError unless all are positive and finite."""
        if not 1 <= len(prior) <= MAX_FEATURES:
            raise ValueError(f"a fit has 1 to {MAX_FEATURES} features, not {len(prior)}")
        if not all(0 < value < math.inf for value in (*prior, strength)):
            raise ValueError(f"a prior must be positive and finite, not {list(prior)} of strength {strength}")
        self._prior = [float(value) for value in prior]
        self._strength = float(strength)
        # In units of the prior all features are alike: a coefficient of 1 is the prior's.
        self._relative = [1.0] * len(prior)
        self._covariance = self._first_covariance()
        self._scale = MAX_SCALE
        self._run = 0  # outliers in a row, negative where they were quicker than expected
        self._known: tuple[float, ...] | None = None  # `coefficients`, until the next measurement
        self.num_observations = 0.0
        """Measurements that it rests on, older ones counted less; 0: the prior alone."""

    def _first_covariance(self) -> Matrix:
        size = len(self._prior)
        return [[1 / self._strength if i == j else 0.0 for j in range(size)] for i in range(size)]

    @property
    def num_features(self) -> int:
        return len(self._prior)

    @property
    def coefficients(self) -> tuple[float, ...]:
        if self._known is None:
            relative = _non_negative(self._relative, self._covariance)
            self._known = tuple(value * prior for value, prior in zip(relative, self._prior, strict=True))
        return self._known

    @property
    def typical_error(self) -> float:
        """How far a measurement usually is from what was expected, as a share of that."""
        return self._scale

    def predict(self, features: Sequence[float]) -> float:
        """Return the seconds to expect."""
        return sum(value * feature for value, feature in zip(self.coefficients, features, strict=True))

    def measured(self, features: Sequence[float], seconds: float) -> None:
        """Note a measurement. One that no feature explains, or that is no positive number, says nothing."""
        shares = [prior * feature for prior, feature in zip(self._prior, features, strict=True)]
        if not (0 < seconds < math.inf and any(shares) and all(0 <= share < math.inf for share in shares)):
            return
        expected = sum(value * share for value, share in zip(self._relative, shares, strict=True))
        unit = max(math.sqrt(seconds * max(expected, seconds / MAX_RATIO)), expected / MAX_RATIO)
        error = (seconds - expected) / unit
        if self._is_change(error):
            self._forget(MEMORY_OF_CHANGE)
            weight = 1.0
        else:
            weight = self._judged(abs(error))
        memory = 1 - (1 - MEMORY) * weight
        self._learn([share / unit for share in shares], error, weight, memory)
        self.num_observations = self.num_observations * memory + weight

    def _is_change(self, error: float) -> bool:
        """Return whether errors have been large, and of one sign, for so long that they are not by chance."""
        if abs(error) <= OUTLIER * self._scale:
            self._run = 0
        elif error > 0:
            self._run = max(self._run, 0) + 1
        else:
            self._run = min(self._run, 0) - 1
        return abs(self._run) >= NUM_TO_CHANGE

    def _judged(self, size: float) -> float:
        """Return how much a measurement with an error of this size weighs; take it into account for later ones."""
        bound = OUTLIER * self._scale
        self._scale += SCALE_SMOOTHING * (min(size, bound) - self._scale)
        self._scale = min(max(self._scale, LEAST_SCALE), MAX_SCALE)
        return min(1.0, bound / size) if size else 1.0

    def _forget(self, memory: float) -> None:
        self._covariance = [[value / memory for value in row] for row in self._covariance]
        self._bound_covariance()
        self.num_observations *= memory

    def _learn(self, shares: Sequence[float], error: float, weight: float, memory: float) -> None:
        """Forget along `shares`, then learn an error there; both change the covariance by a multiple of one matrix."""
        covariance = self._covariance
        reach = [sum(a * b for a, b in zip(row, shares, strict=True)) for row in covariance]
        variance = sum(a * b for a, b in zip(reach, shares, strict=True))
        if variance <= 0:
            self._covariance = self._first_covariance()  # rounding has spoilt it
            return
        gain = 1 / (memory / weight + variance)
        change = (1 - memory) / (memory * variance) - gain / memory
        for i, of_row in enumerate(reach):
            self._relative[i] += gain * error * of_row
            row = covariance[i]
            for j in range(i + 1):
                row[j] += change * of_row * reach[j]
                covariance[j][i] = row[j]
        if not _is_covariance(covariance):
            self._covariance = self._first_covariance()  # rounding has spoilt it
        self._bound_covariance()
        self._known = None

    def _bound_covariance(self) -> None:
        """Let no coefficient be less certain than the prior was, or than that would be if it were as large.

        Collinear features would drift apart without end.
        """
        covariance = self._covariance
        for i, row in enumerate(covariance):
            most = max(1.0, self._relative[i] ** 2) / self._strength
            if not row[i] <= most:
                factor = math.sqrt(most / row[i])
                for j in range(len(row)):
                    row[j] *= factor
                    covariance[j][i] = row[j]
                row[i] = most

    def aged(self, weight: float) -> Self:
        """Let all that it rests on weigh as so many measurements, below 1, and count as one; return itself."""
        if self.num_observations > weight:
            self._forget(weight / self.num_observations)
            self.num_observations = 1.0
        return self

    def to_json(self) -> str:
        return json.dumps(
            {
                "prior": self._prior,
                "strength": self._strength,
                "relative": self._relative,
                "covariance": self._covariance,
                "typical_error": self._scale,
                "num_observations": self.num_observations,
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises ValueError when `text` is not what `to_json` writes."""
        try:
            state = json.loads(text)
            fit = cls(_numbers(state["prior"]), *_numbers([state["strength"]]))
            fit._relative = _numbers(state["relative"], len(fit._prior))
            fit._covariance = [_numbers(row, len(fit._prior)) for row in state["covariance"]]
            scale, fit.num_observations = _numbers([state["typical_error"], state["num_observations"]])
        except (KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"not the state of a fit: {error!r}") from None
        _check_covariance(fit._covariance, len(fit._prior))
        if not (0 < scale <= MAX_SCALE and fit.num_observations >= 0):
            raise ValueError(f"a typical error of {scale} after {fit.num_observations} measurements")
        fit._scale = scale
        fit._bound_covariance()
        return fit


def _non_negative(values: Sequence[float], covariance: Matrix) -> list[float]:
    """Return the most likely values of a normal distribution of which none is negative.

    They are those of the distribution given that some are 0. Which ones is tried: there are few.
    """
    if min(values) >= 0:
        return list(values)
    best, best_cost = [0.0] * len(values), math.inf
    for num_zero in range(1, len(values) + 1):
        for zero in combinations(range(len(values)), num_zero):
            at_zero = [values[i] for i in zero]
            forces = _solved([[covariance[i][j] for j in zero] for i in zero], at_zero)
            found = [
                0.0 if i in zero else value - sum(row[j] * force for j, force in zip(zero, forces, strict=True))
                for i, (value, row) in enumerate(zip(values, covariance, strict=True))
            ]
            if min(found) < 0:
                continue
            if max(forces) <= 0:  # each of them would be negative if it might
                return found
            cost = sum(force * value for force, value in zip(forces, at_zero, strict=True))
            if cost < best_cost:
                best, best_cost = found, cost
    return best


def _solved(matrix: Matrix, right: Sequence[float]) -> list[float]:
    """Return `x` of `matrix x = right` of a symmetric matrix, by elimination; some `x` where it is singular."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        if abs(rows[i][i]) < 1e-12:
            rows[i][i] = 1e-12
        for r in range(i + 1, size):
            factor = rows[r][i] / rows[i][i]
            rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i], strict=True)]
    solution = [0.0] * size
    for i in reversed(range(size)):
        known = sum(rows[i][j] * solution[j] for j in range(i + 1, size))
        solution[i] = (rows[i][size] - known) / rows[i][i]
    return solution


def _numbers(values: object, count: int | None = None) -> list[float]:
    if not isinstance(values, list) or count not in (None, len(values)):
        raise ValueError(f"{values!r} are not {count or 'some'} numbers")
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
        raise ValueError(f"{values!r} are not all finite numbers")
    return [float(value) for value in values]


def _check_covariance(matrix: Matrix, size: int) -> None:
    """Raise ValueError unless it can be one of so many features."""
    if len(matrix) != size or not _is_covariance(matrix):
        raise ValueError("a covariance that is not square and symmetric, or has a correlation above 1")


def _is_covariance(matrix: Matrix) -> bool:
    """Return whether variances are positive and finite, and correlations symmetric and at most 1, but for rounding."""
    if not all(0 < row[i] < math.inf for i, row in enumerate(matrix)):
        return False
    for i, row in enumerate(matrix):
        for j in range(i):
            most = math.sqrt(row[i] * matrix[j][j]) * (1 + 1e-6)
            if not (abs(row[j]) <= most and abs(row[j] - matrix[j][i]) <= 1e-6 * most):
                return False
    return True
