"""Sampling parameters: what is refused, how seeds make draws and choices, what is plain."""

from dataclasses import replace

import pytest

from shared.errors import BadRequest
from shared.sampling.params import SamplingParams, choice_seed, uniform

BASE = SamplingParams(max_tokens=50)


def test_seed_and_position_fix_the_draw() -> None:
    assert uniform(5, 7) == uniform(5, 7)
    assert len({uniform(seed, position) for seed in range(10) for position in range(10)}) == 100
    assert uniform((1 << 64) - 1, 1 << 40) < 1
    numbers = [uniform(3, position) for position in range(2000)]
    assert abs(sum(numbers) / 2000 - 0.5) < 0.03


def test_choices_have_seeds_of_their_own_and_the_first_keeps_the_requests() -> None:
    assert BASE.for_choice(0) == BASE
    seeds = {choice_seed(seed, index) for seed in range(20) for index in range(20)}
    assert len(seeds) == 400
    assert choice_seed(7, 1) == 3839616360365740667  # part of the API: it must not change


def test_a_request_is_plain_when_the_greatest_logit_decides_and_nobody_asks_for_more() -> None:
    plain = replace(BASE, temperature=0, top_p=0.5, min_tokens=3)
    assert plain.is_plain
    assert not BASE.is_plain
    for asks_for_more in (
        replace(plain, presence_penalty=1.0),
        replace(plain, repetition_penalty=1.1),
        replace(plain, logit_bias=((1, 1.0),)),
        replace(plain, num_logprobs=0),
    ):
        assert not asks_for_more.is_plain


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("presence_penalty", 2.1),
        ("frequency_penalty", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("logit_bias", ((-1, 0.0),)),
        ("logit_bias", ((1, 101.0),)),
        ("seed", -1),
        ("seed", 1 << 64),
        ("min_tokens", 11),
        ("stop_token_ids", (-1,)),
        ("num_logprobs", 21),
    ],
)
def test_parameters_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(BadRequest) as caught:
        SamplingParams(**{"max_tokens": 10, field: value})  # type: ignore[arg-type]
    assert caught.value.param == field.removeprefix("num_")


@pytest.mark.parametrize("field", ["stop_token_ids", "logit_bias"])
def test_ids_beyond_the_vocabulary_are_named(field: str) -> None:
    params = replace(BASE, stop_token_ids=(9,)) if field == "stop_token_ids" else replace(BASE, logit_bias=((9, 1.0),))
    params.check_ids(10)
    with pytest.raises(BadRequest) as caught:
        params.check_ids(9)
    assert caught.value.param == field
