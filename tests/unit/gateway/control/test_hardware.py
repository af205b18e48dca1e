"""What instances of a cluster do, by what their workers have measured."""

import numpy as np
import pytest

from services.gateway.control.hardware import PooledPrefill, best_known, decode_point
from shared.step_profile import StepProfile
from tests.support.control import DCS, WEST
from tests.support.members import member, workers

LENGTHS = np.array([100.0, 1000.0, 5000.0])


def rows(num: int, **columns: list[float]) -> np.ndarray:
    return workers(DCS, [member(f"worker-{n}", WEST) for n in range(num)], **columns).rows


def test_a_pool_of_equal_workers_takes_what_each_takes_in_its_steps() -> None:
    profile, step_tokens = StepProfile(0.02, 1e-4, 1e-8), 512
    columns = {name: [value] * 2 for name, value in profile._asdict().items() if name != "num_steps"}
    found = PooledPrefill(rows(2, **columns, step_tokens=[step_tokens] * 2))(LENGTHS)
    assert found.tolist() == pytest.approx([profile.prompt_s(0, int(length), step_tokens) for length in LENGTHS])


def test_a_cached_prefix_is_what_uncached_tokens_attend_to_too() -> None:
    profile, cached = StepProfile(0.0, 0.0, 1e-6), 300
    table = rows(1, base_s=[0], token_s=[0], pair_s=[1e-6])
    found = PooledPrefill(table, cached)(LENGTHS)
    expected = [profile.prompt_s(cached, cached + int(length), 512) for length in LENGTHS]
    assert found.tolist() == pytest.approx(expected)


def test_workers_that_differ_have_the_rate_that_they_have_together() -> None:
    table = rows(2, base_s=[0, 0], pair_s=[0, 0], token_s=[1e-3, 3e-3])
    assert 2 / PooledPrefill(table)(np.array([1000.0]))[0] == pytest.approx(1 / 1 + 1 / 3)


def test_priors_count_only_where_nobody_has_measured() -> None:
    table = rows(3, profile_steps=[0.0, 2.0, 0.5])
    assert best_known(table)["number"].tolist() == [1]
    assert len(best_known(table[[0, 2]])) == 2


def test_a_decode_batch_fills_the_time_of_a_step() -> None:
    table = rows(1, base_s=[0.01], row_s=[1e-3], context_s=[1e-6])
    point = decode_point(table, 1000, 0.05, 64)
    assert point.batch == 20
    assert point.step_s == pytest.approx(0.05)
    assert decode_point(table, 1000, 0.05, 16).batch == 16


def test_one_request_is_decoded_however_long_its_steps_take() -> None:
    assert decode_point(rows(1, base_s=[0.2]), 100, 0.05, 64).batch == 1


def test_memory_limits_the_batch_where_it_is_known() -> None:
    table = rows(1, free_tokens=[6000], kv_usage=[0.4])
    assert decode_point(table, 1000, 1.0, 64).batch == 10


def test_decode_workers_that_differ_have_the_rate_that_they_have_together() -> None:
    table = rows(2, base_s=[0.01, 0.03], row_s=[1e-3] * 2, context_s=[0, 0])
    point = decode_point(table, 1000, 0.05, 64)
    assert point.batch == 30
    assert point.batch / point.step_s == pytest.approx((40 / 0.05 + 20 / 0.05) / 2)


def test_steps_that_take_no_time_are_refused() -> None:
    nothing = {name: [0.0] for name in ("base_s", "token_s", "pair_s", "row_s", "context_s")}
    with pytest.raises(ValueError, match="positive"):
        decode_point(rows(1, **nothing), 1000, 0.05, 64)
