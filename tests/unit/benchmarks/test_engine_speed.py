"""Targets against figures that were made up, and the plan that a model can do."""

import sys

import pytest

from benchmarks.engine.speed import FULL, QUICK, SpeedPlan, SpeedTask, checks, measure
from benchmarks.peers.found import LLAMA, TRANSFORMERS, VLLM, Contestant
from benchmarks.roofline import Limits, Sizes
from shared.model.files.config import ModelConfig
from tests.support.tiny import LLAMA as CONFIG
from tests.unit.benchmarks.test_peers import CHILD

PREFILL, ONE, EIGHT, FAR = SpeedTask(512), SpeedTask(512, 1, 8), SpeedTask(512, 8, 8), SpeedTask(16384, 1, 8)
PLAN = SpeedPlan((PREFILL, ONE, EIGHT), (FAR,), 1)


def test_prefill_is_compared_with_the_better_of_two_and_with_vllm() -> None:
    name = PREFILL.name
    figures = {("prfaas", name): 260.0, (TRANSFORMERS, name): 100.0, (LLAMA, name): 200.0, (VLLM, name): 261.0}
    better, vllm = checks("m", figures, PLAN)
    assert (better.value, better.met) == (1.3, True)
    assert not vllm.met


def test_decode_has_a_factor_for_each_peer() -> None:
    name = ONE.name
    figures = {("prfaas", name): 100.0, (LLAMA, name): 100.0, (VLLM, name): 77.0, (TRANSFORMERS, name): 66.0}
    assert [(c.target, c.met) for c in checks("m", figures, PLAN)] == [
        (">= 1", True),
        (">= 1.3", False),
        (">= 1.5", True),
    ]


def test_batches_and_long_contexts_are_compared_with_ourselves() -> None:
    figures = {("prfaas int8", task.name): value for task, value in ((ONE, 100.0), (EIGHT, 299.0), (FAR, 70.0))}
    found = checks("m", figures, PLAN)
    assert [(c.value, c.met) for c in found] == [(2.99, False), (0.7, True)]
    assert all("prfaas int8" in c.name for c in found)


def test_absent_peers_have_no_checks() -> None:
    assert checks("m", {("prfaas", PREFILL.name): 1.0}, PLAN) == []


def test_a_plan_keeps_what_fits_the_context() -> None:
    assert FULL.within(8192, None).ours_only == ()
    assert [task.context for task in FULL.within(4096, 3).tasks] == [512, 2048, 512, 512]
    assert FULL.within(32768, None) == FULL
    assert QUICK.within(8192, 7).repetitions == 7


def test_absent_and_failing_contestants_are_rows_and_do_not_end_the_run() -> None:
    child = (sys.executable, "-c", CHILD)
    named = [
        Contestant("prfaas", child),
        Contestant(LLAMA, (sys.executable, "-c", "raise SystemExit('broken')")),
        Contestant(VLLM, absent="not here"),
    ]
    plan = SpeedPlan((SpeedTask(100), SpeedTask(13), SpeedTask(64, 1, 4)), (), 2)
    report = measure("m", ModelConfig.from_dict(CONFIG), named, plan, Limits(1e12, 1e10))
    absent = {str(row["contestant"]): str(row["absent"]) for row in report.rows if "absent" in row}
    assert absent[VLLM] == "not here"
    assert "broken" in absent[LLAMA]
    assert "13 tokens" in absent["prfaas"]
    figures = {row["work"]: row["tokens_per_s"] for row in report.rows if "work" in row}
    assert figures == {"prefill 100": 100.0, "decode 1 x 64": pytest.approx(1 / 64, abs=0.1)}


def test_a_batch_shares_the_weights_that_bound_it() -> None:
    config, limits = ModelConfig.from_dict(CONFIG), Limits(operations_per_s=1e15, bytes_per_s=1e6)
    one, eight = (SpeedTask(64, batch, 8).bound(config, limits, Sizes()) for batch in (1, 8))
    assert 1 < eight / one < 8
