"""Expectations over lengths agree with closed forms, with a fine sum, and with plain counting."""

import math
from itertools import pairwise
from statistics import NormalDist, fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.gateway.routing.planning.lengths import EmpiricalLengths, LengthDistribution, TruncatedLogNormal
from services.gateway.routing.planning.profiles import TabulatedProfile
from tests.support.planning import length_distributions

PAPER = TruncatedLogNormal(9.90, 1.00, 128, 131_072)


def partial_moment(lengths: TruncatedLogNormal, power: int, above: float) -> float:
    """Return E[L^power; L > above] in closed form: completing the square shifts the mean by power * sigma^2."""
    normal, shifted = NormalDist(), lengths.mu + power * lengths.sigma**2

    def between(low: float, high: float, mean: float) -> float:
        return normal.cdf((math.log(high) - mean) / lengths.sigma) - normal.cdf((math.log(low) - mean) / lengths.sigma)

    mass = between(lengths.min_tokens, lengths.max_tokens, lengths.mu)
    inside = between(max(above, lengths.min_tokens), lengths.max_tokens, shifted)
    return math.exp(power * lengths.mu + power**2 * lengths.sigma**2 / 2) * inside / mass


@pytest.mark.parametrize("power", [0, 1, 2])
@pytest.mark.parametrize("threshold", [0.0, 128.0, 1000.0, 19_400.0, 100_000.0])
def test_moments_of_the_truncated_log_normal_equal_the_closed_form(power: int, threshold: float) -> None:
    thresholds = np.array([threshold])
    lengths = PAPER.weighted(thresholds)
    sums = lengths.split(lengths.tokens**power, thresholds)
    whole, above = partial_moment(PAPER, power, 0.0), partial_moment(PAPER, power, threshold)
    assert sums.above[0] == pytest.approx(above, rel=1e-9)
    assert sums.below[0] == pytest.approx(whole - above, rel=1e-9, abs=1e-9 * whole)


def test_the_facts_of_the_papers_lengths() -> None:
    thresholds = np.array([19_400.0])
    lengths = PAPER.weighted(thresholds)
    share = lengths.split(np.ones_like(lengths.tokens), thresholds).above[0]
    assert share == pytest.approx(0.4957, abs=5e-5)
    assert lengths.split(lengths.tokens, thresholds).above[0] / share == pytest.approx(45_046, abs=1)
    assert lengths.mean(lengths.tokens) == pytest.approx(27_486, abs=1)


def fine_sum(lengths: TruncatedLogNormal, values: TabulatedProfile, above: float) -> float:
    """Return E[f(L); L > above] by the trapezoid rule over many points of ln L."""
    logs = np.linspace(math.log(max(above, lengths.min_tokens)), math.log(lengths.max_tokens), 200_001)
    whole = np.linspace(math.log(lengths.min_tokens), math.log(lengths.max_tokens), 200_001)

    def density(at: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.exp(-(((at - lengths.mu) / lengths.sigma) ** 2) / 2), np.float64)

    inside = np.trapezoid(density(logs) * values(np.exp(logs)), logs)
    return float(inside / np.trapezoid(density(whole), whole))


@given(st.floats(4, 13), st.floats(0.2, 3), st.floats(0, 200_000), st.lists(st.floats(0.1, 10), min_size=2, max_size=5))
def test_a_tables_partial_expectation_equals_a_fine_sum(
    mu: float, sigma: float, threshold: float, values: list[float]
) -> None:
    profile = TabulatedProfile(tuple(float(10 ** (2 + at)) for at in range(len(values))), tuple(sorted(values)))
    distribution = TruncatedLogNormal(mu, sigma, 64, 200_000)
    thresholds = np.array([threshold])
    lengths = distribution.weighted(thresholds)
    found = lengths.split(profile(lengths.tokens), thresholds).above[0]
    assert found == pytest.approx(fine_sum(distribution, profile, threshold), rel=2e-4, abs=1e-9)


def test_a_narrow_distribution_is_not_missed() -> None:
    lengths = TruncatedLogNormal(math.log(5000), 1e-4, 1, 1e6).weighted(np.empty(0))
    assert lengths.mean(lengths.tokens) == pytest.approx(5000, rel=1e-7)


def test_a_distribution_whose_mean_lies_far_outside_has_its_mass_at_the_edge() -> None:
    lengths = TruncatedLogNormal(math.log(1e9), 0.1, 100, 1000).weighted(np.empty(0))
    assert lengths.mean(lengths.tokens) == pytest.approx(1000, rel=0.01)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=50), st.floats(0, 6000))
def test_observed_lengths_are_counted(observed: list[int], threshold: float) -> None:
    thresholds = np.array([threshold])
    lengths = EmpiricalLengths.of(observed).weighted(thresholds)
    sums = lengths.split(lengths.tokens, thresholds)
    long = [tokens for tokens in observed if tokens > threshold]
    assert sums.above[0] == pytest.approx(sum(long) / len(observed))
    assert sums.below[0] == pytest.approx((sum(observed) - sum(long)) / len(observed))
    assert lengths.mean(lengths.tokens) == pytest.approx(fmean(observed))


def test_a_histogram_is_the_same_as_its_requests() -> None:
    assert EmpiricalLengths.of_histogram({300: 1, 100: 2, 50: 0}) == EmpiricalLengths.of([100, 300, 100])


@given(length_distributions(), st.lists(st.floats(0, 250_000), min_size=1, max_size=20))
def test_shares_lie_between_0_and_1_fall_with_the_threshold_and_add_up(
    distribution: LengthDistribution, thresholds: list[float]
) -> None:
    at = np.sort(np.array(thresholds))
    lengths = distribution.weighted(at)
    assert lengths.weights.sum() == pytest.approx(1)
    assert (np.diff(lengths.tokens) >= 0).all()
    shares = lengths.split(np.ones_like(lengths.tokens), at)
    assert (shares.above >= 0).all()
    assert (shares.above <= 1 + 1e-12).all()
    assert (np.diff(shares.above) <= 1e-12).all()
    assert shares.above + shares.below == pytest.approx(np.ones_like(at))


def test_a_request_of_exactly_the_threshold_is_short() -> None:
    thresholds = np.array([99.0, 100.0, 300.0])
    lengths = EmpiricalLengths.of([100, 300]).weighted(thresholds)
    assert lengths.split(np.ones(2), thresholds).above.tolist() == [1.0, 0.5, 0.0]


def test_a_quantile_is_the_least_value_that_the_share_does_not_exceed() -> None:
    lengths = EmpiricalLengths.of(range(1, 11)).weighted(np.empty(0))
    falling = -lengths.tokens
    assert lengths.quantile(lengths.tokens, 0.9) == 9
    assert lengths.quantile(lengths.tokens, 0.91) == 10
    assert lengths.quantile(lengths.tokens, 1.0) == 10
    assert lengths.quantile(falling, 0.1) == -10


def test_a_quantile_of_the_log_normal_equals_the_closed_form() -> None:
    lengths = PAPER.weighted(np.empty(0))
    normal = NormalDist(PAPER.mu, PAPER.sigma)
    low, high = normal.cdf(math.log(128)), normal.cdf(math.log(131_072))
    exact = math.exp(normal.inv_cdf(low + 0.9 * (high - low)))
    assert lengths.quantile(lengths.tokens, 0.9) == pytest.approx(exact, rel=5e-3)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: TruncatedLogNormal(float("inf"), 1, 1, 2), "mu"),
        (lambda: TruncatedLogNormal(1, 0, 1, 2), "sigma"),
        (lambda: TruncatedLogNormal(1, 1, 2, 2), "min_tokens"),
        (lambda: TruncatedLogNormal(1, 1, 0, 2), "min_tokens"),
        (lambda: EmpiricalLengths.of([]), "at least one length"),
        (lambda: EmpiricalLengths.of([0, 1]), "positive"),
        (lambda: EmpiricalLengths((1.0, 1.0), (1, 1)), "ascend"),
        (lambda: EmpiricalLengths((1.0, 2.0), (1,)), "a count for each"),
        (lambda: EmpiricalLengths((1.0,), (-1,)), "counts"),
    ],
)
def test_a_distribution_that_cannot_be_is_refused(make: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()  # type: ignore[operator]


def test_no_panel_reaches_over_a_threshold() -> None:
    thresholds = np.array([1000.0, 1001.0, 50_000.0])
    tokens = PAPER.weighted(thresholds).tokens
    for low, high in pairwise(thresholds):
        assert ((tokens > low) & (tokens < high)).any()
