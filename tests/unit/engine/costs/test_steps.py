"""Step costs: learnt from steps, told as a profile, and applied to prompts that wait."""

import pytest

from shared.engine.costs.steps import StepCosts, StepWork
from shared.measuring.fitting import OnlineFit
from shared.step_profile import StepProfile, num_pairs

TRUE = StepProfile(0.005, 1e-4, 1e-8, 5e-4, 1e-7)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_profile_is_the_prior_then_what_was_measured() -> None:
    costs = StepCosts(OnlineFit([2 * value for value in TRUE[:5]]))
    assert costs.profile == (*(2 * value for value in TRUE[:5]), 0.0)
    for step in range(100):
        rows, tokens = step % 9, 64 * (step % 3)
        work = StepWork(tokens, num_pairs(0, tokens) * (1 + step % 5), rows, rows * 100 * (1 + step % 7))
        costs.stepped(TRUE.step_s(*work), work)
    profile = costs.profile
    assert profile.num_steps > 20
    assert profile.step_s(512, num_pairs(0, 512), 8, 4000) == pytest.approx(
        TRUE.step_s(512, num_pairs(0, 512), 8, 4000), rel=0.05
    )


def test_a_fit_of_fewer_parts_leaves_the_others_out() -> None:
    costs = StepCosts(OnlineFit(TRUE[:3]))
    costs.stepped(0.1, StepWork(512, num_pairs(0, 512)))
    assert costs.profile.row_s == costs.profile.context_s == 0
    assert costs.profile.num_steps == 1


def test_steps_that_nobody_can_account_for_keep_the_engine_busy_only() -> None:
    clock = Clock()
    costs = StepCosts(OnlineFit(TRUE[:3]), clock)
    for _ in range(100):
        clock.now += 0.5
        costs.stepped(0.25, None)
    assert costs.busy == pytest.approx(0.5, rel=0.05)
    assert costs.fit.num_observations == 0
    for _ in range(100):
        clock.now += 0.5
        costs.stepped(0.6, None)
    assert costs.busy == 1.0, "steps that overlap do not make it more than busy"


def test_a_batch_keeps_an_engine_busy_but_not_with_prompts() -> None:
    clock = Clock()
    costs = StepCosts(OnlineFit(TRUE[:5]), clock)
    batch = StepWork(num_rows=8, context_tokens=1000)
    both = batch._replace(num_tokens=512, num_pairs=num_pairs(0, 512))
    for _ in range(100):
        for work in (batch, both):
            clock.now += TRUE.step_s(*work)
            costs.stepped(TRUE.step_s(*work), work)
    assert costs.busy == pytest.approx(1.0, rel=0.05)
    added_s = TRUE.step_s(*both) - TRUE.step_s(*batch)
    assert costs.busy_with_prompts == pytest.approx(added_s / (TRUE.step_s(*both) + TRUE.step_s(*batch)), rel=0.05)


def test_prompts_that_wait_share_steps_with_the_batch() -> None:
    costs = StepCosts(OnlineFit(TRUE[:5]))
    assert costs.queued([(5, 5), (8, 3)], 512) == (0, 0.0)
    beside = StepWork(num_rows=4, context_tokens=2000)
    queued = costs.queued([(0, 100), (300, 400)], 128, beside)
    pairs = num_pairs(0, 100) + num_pairs(300, 400)
    assert queued.num_tokens == 200
    assert queued.seconds == pytest.approx(2 * TRUE.step_s(0, 0, 4, 2000) + TRUE.token_s * 200 + TRUE.pair_s * pairs)
    assert costs.queued([(0, 1)], 0).seconds > 0
