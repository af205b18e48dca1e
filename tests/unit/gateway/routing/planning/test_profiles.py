"""Profiles agree with their definitions, and with the paper's table and fits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.routing.planning.profiles import (
    PolynomialProfile,
    ScaledProfile,
    TabulatedProfile,
    require_positive,
)
from tests.support.planning import length_profiles

LENGTHS = (1024.0, 8192.0, 32768.0, 131072.0)
PREFILL_S = (0.44, 0.72, 1.84, 7.40)
KV_MIB = (190.8, 308.9, 701.3, 2316.3)
TABLE = TabulatedProfile((10.0, 20.0, 40.0), (1.0, 3.0, 4.0))


def test_a_polynomial_counts_in_its_unit() -> None:
    profile = PolynomialProfile((0.5, 2.0, 3.0), unit_tokens=1024)
    assert profile(np.array([0.0, 1024.0, 2048.0])).tolist() == [0.5, 5.5, 16.5]


def test_a_table_has_straight_lines_between_its_values() -> None:
    assert TABLE(np.array([10.0, 15.0, 20.0, 30.0, 40.0])).tolist() == [1.0, 2.0, 3.0, 3.5, 4.0]


def test_a_table_stays_level_before_its_first_value_and_goes_straight_on_after_its_last() -> None:
    assert TABLE(np.array([0.0, 5.0, 60.0, 80.0])).tolist() == [1.0, 1.0, 5.0, 6.0]


def test_a_scaled_profile_is_the_other_times_the_factor() -> None:
    assert ScaledProfile(TABLE, 2.5)(np.array([15.0, 60.0])).tolist() == [5.0, 12.5]


def test_fitting_the_papers_table_gives_the_published_fits() -> None:
    prefill = PolynomialProfile.fit(LENGTHS, PREFILL_S, degree=2)
    kv = PolynomialProfile.fit(LENGTHS, KV_MIB, degree=1)
    lengths = np.linspace(128, 131072, 50)
    published_s = PolynomialProfile((0.389, 0.04206, 9.94e-5), 1024)(lengths)
    published_mib = PolynomialProfile((172.0, 16.74), 1024)(lengths)
    assert prefill(lengths) == pytest.approx(published_s, rel=0.03)
    assert kv(lengths) == pytest.approx(published_mib, rel=0.02)


def test_a_fit_through_as_many_values_as_it_has_coefficients_is_exact() -> None:
    fitted = PolynomialProfile.fit((1.0, 2.0, 3.0), (6.0, 17.0, 34.0), degree=2)
    assert fitted(np.array([4.0])) == pytest.approx([57.0])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: PolynomialProfile(()), "at least one"),
        (lambda: PolynomialProfile((1.0, float("nan"))), "finite"),
        (lambda: PolynomialProfile((1.0,), 0.0), "positive number of tokens"),
        (lambda: TabulatedProfile((1.0, 2.0), (1.0,)), "2 lengths have 1 values"),
        (lambda: TabulatedProfile((1.0,), (1.0,)), "two lengths"),
        (lambda: TabulatedProfile((2.0, 2.0), (1.0, 1.0)), "ascend"),
        (lambda: TabulatedProfile((1.0, 2.0), (1.0, 0.0)), "positive"),
        (lambda: ScaledProfile(TABLE, 0.0), "factor"),
        (lambda: PolynomialProfile.fit((1.0, 2.0), (1.0, 2.0), degree=2), "degree 2"),
        (lambda: PolynomialProfile.fit((1.0, 2.0), (1.0, -2.0), degree=1), "positive"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(make: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()  # type: ignore[operator]


def test_the_length_at_which_a_profile_is_not_positive_is_named() -> None:
    with pytest.raises(ValueError, match=r"is -1 at 3,000 tokens"):
        require_positive(PolynomialProfile((2.0, -1.0), 1000), np.array([1000.0, 3000.0, 4000.0]))


@given(length_profiles(), st.lists(st.floats(1, 1e6), min_size=1, max_size=20))
def test_profiles_keep_the_shape_and_the_order_of_lengths(profile: PolynomialProfile, tokens: list[float]) -> None:
    lengths = np.sort(np.array(tokens))
    values = profile(lengths)
    assert values.shape == lengths.shape
    assert (np.diff(values) >= -1e-9 * values[:-1]).all()
    require_positive(profile, lengths)
