"""Sampling on decode workers: what a second one continues, what a batch does not change, what is told of tokens."""

import asyncio
from typing import Any

import pytest

from shared.errors import BadRequest
from tests.support.engines import TwoDatacenters, two_datacenters
from tests.support.tiny import prompt

WARM: dict[str, Any] = {
    "temperature": 1.5,
    "top_k": 60,
    "min_p": 0.01,
    "seed": 11,
    "presence_penalty": 1.0,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.3,
    "logit_bias": {5: 2.0},
}
KINDS = {
    "seed": {"temperature": 1.2, "seed": 3},
    "penalties": WARM,
    "greedy penalties": {**WARM, "temperature": 0.0},
    "min_tokens": {**WARM, "stop_token_ids": [*range(40)], "min_tokens": 12},
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_second_worker_goes_on_as_the_first_would_have(kind: str) -> None:
    sampling = KINDS[kind]
    tokens, num_tokens = prompt(90), 24
    async with two_datacenters("llama") as first:
        whole = (await first.generate(tokens, num_tokens, **sampling)).ids
    assert len(whole) >= sampling.get("min_tokens", num_tokens)
    async with two_datacenters("llama") as second:
        for done in (1, 7, len(whole) - 1):
            left = {**sampling, "min_tokens": max(0, sampling.get("min_tokens", 0) - done)}
            rest = await second.generate(tokens + whole[:done], num_tokens - done, num_generated=done, **left)
            assert whole[:done] + rest.ids == whole, f"continued after {done}"


async def test_penalties_need_to_know_what_was_generated() -> None:
    """Without `num_generated` a continuation would differ: what the test above would miss if penalties did nothing."""
    tokens = prompt(90)
    greedy: dict[str, Any] = {"presence_penalty": 2.0, "frequency_penalty": 2.0}
    async with two_datacenters("llama") as dcs:
        whole = (await dcs.generate(tokens, 40, **greedy)).ids
        forgotten = (await dcs.generate(tokens + whole[:20], 20, **greedy)).ids
        assert whole[20:] != forgotten
        assert len(set(whole)) > len(set((await dcs.generate(tokens, 40)).ids))


async def test_a_request_samples_the_same_alone_and_in_company() -> None:
    async with two_datacenters("llama") as dcs:
        tokens = prompt(70)
        alone = await dcs.generate(tokens, 20, num_logprobs=3, **WARM)
        company = await asyncio.gather(*_crowd(dcs), dcs.generate(tokens, 20, num_logprobs=3, **WARM))
        assert company[5].ids == alone.ids
        assert [told.logprob for told in company[5].logprobs] == pytest.approx(
            [told.logprob for told in alone.logprobs], abs=1e-4
        )
        await dcs.assert_idle()


def _crowd(dcs: TwoDatacenters) -> list[Any]:
    return [dcs.generate(prompt(50 + i, seed=i), 30, temperature=i % 2, seed=i, num_logprobs=i) for i in range(5)]


async def test_logprobs_come_with_every_token() -> None:
    async with two_datacenters("llama") as dcs:
        result = await dcs.generate(prompt(70), 6, num_logprobs=2)
        assert len(result.logprobs) == 6
        for token, told in zip(result.ids, result.logprobs, strict=True):
            assert len(told.top) == 2
            assert told.top[0] == (token, told.logprob)  # greedy
            assert told.top[1][1] <= told.logprob < 0
        assert (await dcs.generate(prompt(70), 6)).logprobs == []


@pytest.mark.parametrize(
    "wrong", [{"stop_token_ids": [199]}, {"logit_bias": {199: 1.0}}, {"min_p": 2.0}, {"num_generated": 70}]
)
async def test_what_a_worker_refuses(wrong: dict[str, Any]) -> None:
    async with two_datacenters("llama") as dcs:
        with pytest.RaisesGroup(BadRequest):
            await dcs.generate(prompt(70), 6, prefill=False, **wrong)
        assert len((await dcs.generate(prompt(70), 6)).ids) == 6
