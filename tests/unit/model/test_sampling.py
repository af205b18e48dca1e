"""Sampling: greedy, the filters, distribution, and independence of the batch."""

import math

import pytest
import torch

from shared.errors import BadRequest
from shared.model.sampling import sample, uniform
from shared.model.sampling_params import SamplingParams


def logits_of(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def draws(row: list[float], params: SamplingParams, count: int = 2000) -> list[int]:
    return sample(logits_of(row).expand(count, -1), [params] * count, range(count))


def test_greedy_takes_the_first_maximum() -> None:
    params = SamplingParams(max_tokens=1, temperature=0)
    assert sample(logits_of([0, 2, 1], [5, 5, 1]), [params] * 2, [3, 9]) == [1, 0]


def test_a_row_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(12, 1000)
    params = [
        SamplingParams(max_tokens=1, temperature=0.5 + i / 4, top_p=1 - i / 20, top_k=i * 5, seed=i) for i in range(12)
    ]
    positions = list(range(100, 112))
    together = sample(logits, params, positions)
    alone = [sample(logits[i : i + 1], params[i : i + 1], positions[i : i + 1])[0] for i in range(12)]
    backwards = sample(logits.flip(0), params[::-1], positions[::-1])[::-1]
    assert together == alone == backwards


def test_seed_and_position_fix_the_draw() -> None:
    assert uniform(5, 7) == uniform(5, 7)
    assert len({uniform(seed, position) for seed in range(10) for position in range(10)}) == 100
    assert uniform((1 << 64) - 1, 1 << 40) < 1
    numbers = [uniform(3, position) for position in range(2000)]
    assert abs(sum(numbers) / 2000 - 0.5) < 0.03


def test_frequencies_follow_the_distribution() -> None:
    row = [math.log(p) for p in (0.5, 0.3, 0.2)]
    chosen = draws(row, SamplingParams(max_tokens=1, seed=1))
    for token, probability in enumerate((0.5, 0.3, 0.2)):
        assert abs(chosen.count(token) / 2000 - probability) < 0.04
    sharp = draws(row, SamplingParams(max_tokens=1, temperature=0.5, seed=1))
    assert abs(sharp.count(0) / 2000 - 0.25 / 0.38) < 0.04


def test_top_k_and_top_p() -> None:
    row = [math.log(p) for p in (0.1, 0.4, 0.2, 0.3)]
    assert set(draws(row, SamplingParams(max_tokens=1, top_k=2), 300)) == {1, 3}
    assert set(draws(row, SamplingParams(max_tokens=1, top_k=1), 20)) == {1}
    assert set(draws(row, SamplingParams(max_tokens=1, top_p=0.69), 300)) == {1, 3}
    assert set(draws(row, SamplingParams(max_tokens=1, top_p=0.71), 300)) == {1, 2, 3}
    assert set(draws(row, SamplingParams(max_tokens=1, top_p=1e-6), 20)) == {1}
    # top-p acts on what top-k left, renormalised: 0.4 / 0.7 is above one half
    assert set(draws(row, SamplingParams(max_tokens=1, top_k=2, top_p=0.5), 100)) == {1}


def test_top_k_breaks_ties_by_lower_id() -> None:
    assert set(draws([1.0] * 10, SamplingParams(max_tokens=1, top_k=3), 200)) == {0, 1, 2}


def test_forbidden_tokens() -> None:
    greedy = SamplingParams(max_tokens=2, temperature=0)
    warm = SamplingParams(max_tokens=2)
    logits = logits_of([0, 9, 5], [0, 9, 5], [0, 99, 0])
    assert sample(logits, [greedy, greedy, warm], [0, 0, 0], [[], [1], [1, 0]]) == [1, 2, 2]


def test_impossible_tokens_are_never_drawn() -> None:
    row = [float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]
    for params in (SamplingParams(max_tokens=1), SamplingParams(max_tokens=1, top_p=0.999)):
        assert set(draws(row, params, 300)) == {1, 3}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("seed", -1),
        ("seed", 1 << 64),
        ("min_tokens", 11),
        ("stop_token_ids", (-1,)),
    ],
)
def test_parameters_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(BadRequest) as caught:
        SamplingParams(**{"max_tokens": 10, field: value})  # type: ignore[arg-type]
    assert caught.value.param == field
