"""Corrections follow what was measured, within bounds, and fade."""

from dataclasses import replace

import pytest

from services.gateway.routing.calibration import (
    FORGOTTEN_AFTER_S,
    HAND_OVER,
    MAX_FACTOR,
    MAX_OFFSET_S,
    Calibration,
    prior_of,
)
from services.gateway.routing.plan import Forecast, Plan
from shared.ids import Datacenter
from tests.support.plans import plan

EAST = Datacenter("east")


def forecast(model_s: float) -> Plan:
    return replace(plan(), forecast=Forecast(model_s, model_s, 0.01))


def corrected(calibration: Calibration, model_s: float, now: float = 0.0) -> float:
    correction = calibration.corrections(now)["remote", EAST]
    return correction.offset_s + correction.factor * model_s


def test_a_line_is_learnt() -> None:
    calibration = Calibration()
    for number in range(60):
        model_s = 0.1 + 0.05 * (number % 20)
        calibration.measured(forecast(model_s), 0.03 + 1.4 * model_s, 0.0)
    for model_s in (0.1, 1.0):
        assert corrected(calibration, model_s) == pytest.approx(0.03 + 1.4 * model_s, rel=0.06)


def test_a_link_that_has_just_changed_is_no_error_of_the_model() -> None:
    calibration = Calibration()
    for _ in range(50):
        calibration.measured(forecast(0.5), 50.0, 0.0)
    assert corrected(calibration, 0.5) <= 1.01 * (MAX_FACTOR * 0.5 + MAX_OFFSET_S)


def test_a_way_that_was_given_up_is_forecast_as_at_first_after_a_while() -> None:
    calibration = Calibration()
    for _ in range(20):
        calibration.measured(forecast(0.5), 0.9, 0.0)
    assert corrected(calibration, 0.5) == pytest.approx(0.9, rel=0.03)
    assert corrected(calibration, 0.5, 10 * FORGOTTEN_AFTER_S) == pytest.approx(HAND_OVER.offset_s + 0.5, rel=0.01)


def test_plans_are_told_apart_by_kind_and_place() -> None:
    calibration = Calibration()
    calibration.measured(forecast(0.5), 0.6, 0.0)
    calibration.measured(plan(0), 0.6, 0.0)
    assert set(calibration.corrections(0.0)) == {("remote", "east"), ("decode_only", "west")}
    assert prior_of("remote") == prior_of("local") == HAND_OVER
    assert prior_of("none").offset_s < HAND_OVER.offset_s
