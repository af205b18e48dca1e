"""How much of tails a step takes: learnt costs, a target, bursts, and a floor."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.decode.steps.pace import CostLine, StepPace
from shared.engine.packing import MIN_TAIL_TOKENS
from shared.engine.urgency import Urgency

PER_STEP_S, PER_ROW_S, PER_TOKEN_S = 0.005, 0.0005, 0.0002


FLOOD, OTHER = Urgency(0, 600, 10), Urgency(0, 600)


def learnt(target_s: float = 0.0, per_tails_s: float = 0.0) -> StepPace:
    pace = StepPace(max_tokens=512, target_s=target_s, yielding_tokens=128)
    for step in range(200):
        rows, tokens = 1 + step % 16, (step % 3) * 50
        seconds = PER_STEP_S + PER_ROW_S * rows + PER_TOKEN_S * tokens + per_tails_s * bool(tokens)
        pace.cost.measured(rows, tokens, seconds)
    return pace


def test_costs_are_learnt_from_steps() -> None:
    cost = learnt(per_tails_s=0.002).cost
    assert cost.batch.at(8) == pytest.approx(PER_STEP_S + 8 * PER_ROW_S, rel=0.01)
    assert cost.tails.slope == pytest.approx(PER_TOKEN_S, rel=0.05)
    assert cost.tails.offset == pytest.approx(0.002, rel=0.1)


def test_tails_take_as_long_as_the_batch() -> None:
    assert learnt().tail_tokens(8, 1) == pytest.approx((PER_STEP_S + 8 * PER_ROW_S) / PER_TOKEN_S, abs=3)


def test_steps_whose_tails_cost_much_whatever_their_number_carry_many() -> None:
    assert learnt(per_tails_s=0.03).tail_tokens(8, 1) == pytest.approx(0.03 / PER_TOKEN_S, abs=3)
    assert learnt(per_tails_s=0.002).tail_tokens(8, 1) == pytest.approx(
        (PER_STEP_S + 8 * PER_ROW_S - 0.002) / PER_TOKEN_S, abs=3
    )


def test_a_burst_gets_as_many_times_more() -> None:
    pace = learnt()
    assert pace.tail_tokens(8, 12) == pytest.approx(3 * pace.tail_tokens(8, 4), abs=4)
    assert pace.tail_tokens(8, 4) == pytest.approx(pace.tail_tokens(8, 1), abs=1), "few do not outweigh the batch"


def test_a_target_bounds_a_step() -> None:
    pace = learnt(target_s=0.02)
    assert pace.tail_tokens(8, 32) == pytest.approx((0.02 - PER_STEP_S - 8 * PER_ROW_S) / PER_TOKEN_S, abs=3)
    assert learnt(target_s=0.001).tail_tokens(8, 1) == MIN_TAIL_TOKENS


def test_without_a_batch_or_before_anything_is_known_steps_are_whole() -> None:
    assert learnt().tail_tokens(0, 5) == 512
    assert StepPace(512).tail_tokens(4, 1) == 512


def test_a_cheap_token_does_not_make_a_step_longer_than_the_largest() -> None:
    pace = StepPace(512)
    pace.cost.measured(4, 0, 0.01)
    pace.cost.measured(4, 100, 0.009)  # noise: with tails it was quicker
    assert pace.tail_tokens(4, 1) == 512


MEASUREMENTS = st.lists(st.tuples(st.integers(0, 64), st.integers(0, 512), st.floats(1e-6, 10)), max_size=50)


@given(MEASUREMENTS, st.integers(0, 64), st.integers(0, 64), st.floats(0, 1))
def test_whatever_was_measured_a_step_is_within_its_bounds(
    measured: list[tuple[int, int, float]], num_running: int, num_tails: int, target_s: float
) -> None:
    pace = StepPace(512, target_s)
    for measurement in measured:
        pace.cost.measured(*measurement)
    assert MIN_TAIL_TOKENS <= pace.tail_tokens(num_running, num_tails) <= 512


def test_old_measurements_fade() -> None:
    line = CostLine()
    for seconds in (0.1, 0.01):
        for step in range(600):
            line.measured(1 + step % 4, seconds)
    assert line.at(2) == pytest.approx(0.01, rel=0.01)


def test_rows_that_stand_back_have_no_claim_on_a_tail_that_does_not() -> None:
    pace = learnt()
    assert pace.room([OTHER], [FLOOD] * 8) == 512
    assert pace.room([OTHER], [FLOOD] * 8 + [OTHER] * 8) == pace.tail_tokens(8, 1) < 512
    assert pace.room([OTHER, OTHER], [OTHER] * 8) == pace.tail_tokens(8, 2)


def test_a_step_of_tails_that_stand_back_is_small() -> None:
    pace = learnt()
    assert pace.room([FLOOD], []) == 128
    assert pace.room([FLOOD], [OTHER] * 8) == pace.tail_tokens(8, 1) < 128
    assert pace.room([FLOOD] * 64, [FLOOD] * 8) == 128
    assert pace.room([], [OTHER]) == 0
