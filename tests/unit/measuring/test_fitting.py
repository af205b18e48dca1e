"""Costs learnt online: from a prior, through outliers and changes of speed, with features that tell nothing apart."""

import json
import math
import random
import statistics
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.measuring.fitting import MAX_FEATURES, OnlineFit
from shared.step_profile import num_pairs

TRUE = (0.004, 6e-4, 2e-7)
FULL_STEP = (1.0, 512.0, num_pairs(512, 1024))


def prompts(rng: random.Random) -> tuple[float, ...]:
    """Return the features of a step of a prefill engine."""
    first, tokens = rng.choice((0, 512, 1024, 2048, 3584)), rng.choice((64, 128, 256, 512, 512, 512))
    return 1.0, float(tokens), num_pairs(first, first + tokens)


def cost(features: Sequence[float], speed: float = 1.0) -> float:
    return sum(value * feature for value, feature in zip(TRUE, features, strict=True)) / speed


def learn(fit: OnlineFit, rng: random.Random, num_steps: int, speed: float = 1.0, noise: float = 0.03) -> None:
    for _ in range(num_steps):
        features = prompts(rng)
        fit.measured(features, cost(features, speed) * rng.lognormvariate(0, noise))


def error(fit: OnlineFit, speed: float = 1.0) -> float:
    """Return the median relative error of predictions."""
    rng = random.Random(7)
    steps = [prompts(rng) for _ in range(200)]
    return statistics.median(abs(fit.predict(step) / cost(step, speed) - 1) for step in steps)


def learnt(prior: Sequence[float] = TRUE, num_steps: int = 100) -> tuple[OnlineFit, random.Random]:
    fit, rng = OnlineFit(prior), random.Random(1)
    learn(fit, rng, num_steps)
    return fit, rng


def test_a_prior_is_all_that_is_known_at_first() -> None:
    fit = OnlineFit(TRUE)
    assert fit.coefficients == TRUE
    assert fit.num_observations == 0
    assert fit.predict(FULL_STEP) == pytest.approx(cost(FULL_STEP))


@pytest.mark.parametrize("wrong", [0.1, 1, 10])
def test_thirty_steps_correct_a_prior(wrong: float) -> None:
    fit, _ = learnt([value * wrong for value in TRUE], 30)
    assert error(fit) < 0.05
    assert 15 < fit.num_observations <= 30


@pytest.mark.parametrize("speed", [1 / 3, 3])
def test_another_speed_is_followed_within_thirty_steps(speed: float) -> None:
    fit, rng = learnt()
    learn(fit, rng, 20, speed)
    assert error(fit, speed) < 0.15
    learn(fit, rng, 10, speed)
    assert error(fit, speed) < 0.06


@pytest.mark.parametrize("factor", [100, 10, 3, 0.1, 0.01])
def test_one_outlier_moves_little(factor: float) -> None:
    fit, rng = learnt()
    before, step = fit.predict(FULL_STEP), prompts(rng)
    fit.measured(step, cost(step) * factor)
    assert fit.predict(FULL_STEP) == pytest.approx(before, rel=0.03)
    assert fit.typical_error < 0.1


def test_a_tenth_of_all_steps_may_be_outliers() -> None:
    fit, rng = learnt()
    for _ in range(300):
        step = prompts(rng)
        fit.measured(step, cost(step) * (5 if rng.random() < 0.1 else 1))
    assert error(fit) < 0.05


def test_what_steps_have_not_shown_for_long_stays_known() -> None:
    fit, _ = learnt([value * 5 for value in TRUE])
    before = fit.predict((1, 512, num_pairs(4096, 4608)))
    for _ in range(5000):
        fit.measured((1, 64, 64 * 32.5), cost((1, 64, 64 * 32.5)))
    assert fit.predict((1, 512, num_pairs(4096, 4608))) == pytest.approx(before, rel=0.03)


def test_features_that_are_never_seen_apart_share_what_is_measured() -> None:
    fit = OnlineFit((1e-3, 1e-3, 1e-3))
    for _ in range(200):
        fit.measured((1, 2, 0), 0.012)
    assert fit.coefficients[0] + 2 * fit.coefficients[1] == pytest.approx(0.012, rel=0.01)
    assert fit.coefficients[1] - 1e-3 == pytest.approx(2 * (fit.coefficients[0] - 1e-3), rel=0.01)
    assert fit.coefficients[2] == 1e-3, "what was never seen is the prior's"


def test_no_coefficient_is_negative_and_the_others_make_up_for_it() -> None:
    fit = OnlineFit((1e-2, 1e-3))
    for step in range(200):
        tokens = 10 + step % 50
        fit.measured((1, tokens), 1e-3 * tokens - 4e-3)
    base, token = fit.coefficients
    assert base == 0
    assert 0.7e-3 < token < 1e-3


def test_an_earlier_life_weighs_less_than_a_step() -> None:
    kept = OnlineFit.from_json(learnt()[0].to_json()).aged(0.1)
    assert kept.num_observations == 1
    assert error(kept) < 0.02
    fresh, rng = learnt()
    for fit in (kept, fresh):
        learn(fit, rng, 8, speed=0.7)
    assert error(kept, 0.7) < error(fresh, 0.7)


def test_an_earlier_life_with_other_steps_on_a_quicker_machine_is_soon_forgotten() -> None:
    """Long prompts then, short ones now: what a token takes must not stay as it was, and all be put on the step."""
    fit, rng = learnt()
    fit = fit.aged(0.1)
    for step in range(20):
        prompts_of_step = (1, 1, 2, 1, 4)[step % 5]
        work = (1.0, 64.0 * prompts_of_step, 64 * 32.5 * prompts_of_step)
        fit.measured(work, 4 * cost(work) * rng.lognormvariate(0, 0.2))
    several = (1, 256, 4 * 64 * 32.5)
    assert fit.predict(several) == pytest.approx(4 * cost(several), rel=0.2)


def test_its_state_survives_as_json() -> None:
    fit, _ = learnt()
    copy = OnlineFit.from_json(fit.to_json())
    for one in (fit, copy):
        one.measured(FULL_STEP, 0.4)
    assert copy.coefficients == fit.coefficients
    assert copy.num_observations == fit.num_observations
    assert copy.typical_error == fit.typical_error


BAD_FIELDS = [
    {"prior": [1.0, -1.0]},
    {"prior": []},
    {"prior": "1"},
    {"strength": 0},
    {"relative": [1.0]},
    {"relative": [1.0, float("nan")]},
    {"covariance": [[1.0]]},
    {"covariance": [[1.0, 0.0], [0.0, -1.0]]},
    {"covariance": [[1.0, 2.0], [2.0, 1.0]]},
    {"covariance": [[1.0, 0.5], [0.1, 1.0]]},
    {"covariance": [[1.0, 0.5], None]},
    {"typical_error": 0},
    {"typical_error": 10**400},
    {"num_observations": -1},
    {"num_observations": "1"},
]


@pytest.mark.parametrize("changes", BAD_FIELDS, ids=str)
def test_state_that_is_none_is_refused(changes: dict[str, object]) -> None:
    state = {**json.loads(OnlineFit((1.0, 2.0)).to_json()), **changes}
    with pytest.raises(ValueError):
        OnlineFit.from_json(json.dumps(state))


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "{", b"\xff", '"x"'])
def test_text_that_is_no_state_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        OnlineFit.from_json(text)


@pytest.mark.parametrize("prior", [(), (0.0,), (-1.0,), (math.inf,), (math.nan,), (1.0,) * (MAX_FEATURES + 1)])
def test_a_prior_is_positive(prior: Sequence[float]) -> None:
    with pytest.raises(ValueError):
        OnlineFit(prior)


SECONDS = st.floats(1e-9, 1e6) | st.sampled_from([0.0, -1.0, math.inf, math.nan])
MEASUREMENTS = st.lists(
    st.tuples(st.just(1.0) | st.just(0.0), st.integers(0, 4096), st.integers(0, 10**9), st.integers(0, 64), SECONDS),
    max_size=40,
)


@given(MEASUREMENTS, st.floats(1e-6, 1.0), st.booleans())
def test_whatever_is_measured_coefficients_are_finite_and_not_negative(
    measured: list[tuple[float, int, int, int, float]], base: float, again: bool
) -> None:
    fit = OnlineFit((base, 1e-4, 1e-8, 1e-3))
    for *features, seconds in measured * (8 if again else 1):
        fit.measured(features, seconds)
    assert all(0 <= value < math.inf for value in fit.coefficients)
    assert 0 <= fit.num_observations < 40
    assert OnlineFit.from_json(fit.to_json()).coefficients == fit.coefficients


@given(st.integers(0, 2**32), st.floats(0.2, 20), st.lists(st.floats(0.2, 5), min_size=3, max_size=3))
def test_any_costs_are_learnt(seed: int, speed: float, wrong: list[float]) -> None:
    rng = random.Random(seed)
    fit = OnlineFit([value * factor for value, factor in zip(TRUE, wrong, strict=True)])
    learn(fit, rng, 80, speed)
    assert error(fit, speed) < 0.1
