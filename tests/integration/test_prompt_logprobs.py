"""How likely a prompt's own tokens are, as a decode engine tells it: as `transformers` has it, and whatever happens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from services.decode.request import FinishReason, Request
from shared.engine.loaded import LoadedModel
from shared.errors import Internal
from shared.model.files.catalog import resolve
from shared.model.pages.kv import PagedKv
from shared.sampling.logprobs import PromptScoring, TokenLogprobs
from shared.sampling.params import SamplingParams
from tests.support.checkpoints import CONFIGS, load, random_ids
from tests.support.decoding import DecodeBench, decode_bench, ids_of
from tests.support.parts import generation
from tests.support.tiny import greedy_reference, prompt, tiny_model
from tests.support.waiting import until

TOLERANCE = 1e-4
ALL = PromptScoring(1, 0)


@dataclass
class Told:
    ids: list[int] = field(default_factory=list)
    scores: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    computed: int = 0


def submit(b: DecodeBench, tokens: list[int], max_tokens: int = 1, scoring: PromptScoring | None = ALL) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0)
    return b.engine.submit(generation(b.model, tokens, sampling=sampling, scoring=scoring))


async def told(request: Request) -> Told:
    found = Told()
    async for event in request.events():
        assert not (event.prompt_logprobs and found.ids), "the prompt is told before the answer begins"
        found.ids += event.ids
        found.scores += event.prompt_logprobs
        found.computed += event.computed_prompt_tokens
        found.finish_reason = event.finish_reason
    return found


@asynccontextmanager
async def bench(name: str = "llama", num_pages: int = 64, **settings: Any) -> AsyncIterator[DecodeBench]:
    async with decode_bench(tiny_model(name, num_pages), **settings) as b:
        yield b


@pytest.mark.parametrize("family", [name for name in CONFIGS if name != "llama-tied-mha"])
async def test_as_transformers_has_it_in_every_family(family: str, tmp_path: Path) -> None:
    """Three chunks of 128 tokens; windows are far shorter than a chunk; groups of query heads share keys."""
    tiny, tokens = load(family, tmp_path), random_ids(300, seed=5)
    layout = tiny.config.kv_layout(16, "float32")
    kv = PagedKv(layout, 160, 16)
    files = resolve(str(tmp_path), tmp_path / "cache")
    expected = tiny.expected(tokens).log_softmax(dim=-1)
    async with decode_bench(LoadedModel(files, tiny.config, layout, tiny.model, kv, tiny.config.max_context)) as b:
        found = await told(submit(b, tokens, scoring=PromptScoring(1, 5)))
    assert len(found.scores) == 299
    for row, token, (logprob, top, rank) in zip(expected, tokens[1:], found.scores, strict=False):
        assert logprob == pytest.approx(row[token].item(), abs=TOLERANCE)
        assert rank == pytest.approx(1 + int((row > row[token]).sum()), abs=1)  # rounding may swap neighbours
        values, _ = row.topk(5)
        assert [value for _, value in top] == pytest.approx(values.tolist(), abs=TOLERANCE)
        assert [row[i].item() for i, _ in top] == pytest.approx(values.tolist(), abs=TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
async def test_what_is_cached_is_computed_again_and_to_the_same_bits(name: str) -> None:
    tokens = prompt(333)
    async with bench(name, 256) as b:
        first = await told(submit(b, tokens, 4))
        again = await told(submit(b, tokens, 4))
        assert (first.computed, again.computed) == (333, 333)
        assert again == first
        assert first.ids == greedy_reference(name, tokens, 4)
        plain = await told(submit(b, tokens, 4, scoring=None))
        assert (plain.ids, plain.scores, plain.computed < 64) == (first.ids, [], True)
        assert b.metric("decode_scored_prompt_tokens_total") == 2 * 332


@pytest.mark.parametrize("name", ["llama", "gemma3"])
async def test_what_lies_before_the_first_token_asked_for_may_be_cached(name: str) -> None:
    """A second worker goes on so behind what the first has told."""
    tokens = prompt(333)
    async with bench(name, 256) as b:
        whole = await told(submit(b, tokens, 3))
        for first in (1, 2, 64, 65, 66, 200, 332, 333):
            rest = await told(submit(b, tokens, 3, scoring=PromptScoring(first, 0)))
            assert rest.scores == whole.scores[first - 1 :], first
            assert rest.ids == whole.ids
            assert 333 - (first - 1) <= rest.computed <= 333 - (first - 1) // 64 * 64


async def test_neighbours_and_the_prompt_do_not_see_each_other() -> None:
    tokens = prompt(500)
    async with bench(num_pages=128) as b:
        alone = await told(submit(b, tokens, 2, scoring=PromptScoring(1, 3)))
    async with bench(num_pages=128) as b:
        others = [b.submit(prompt(40 + i, seed=i + 1), 60) for i in range(4)]
        await until(lambda: all(other.num_generated > 3 for other in others))
        both = [submit(b, tokens, 2, scoring=PromptScoring(1, 3)) for _ in range(2)]  # neither waits for the other
        found = await asyncio.gather(*map(told, both))
        assert [one.scores for one in found] == [alone.scores] * 2
        assert [one.computed for one in found] == [500, 500]
        for i, other in enumerate(others):
            assert await ids_of(other) == greedy_reference("llama", prompt(40 + i, seed=i + 1), 60)


async def test_a_plain_request_follows_one_that_is_told_of_the_same_prompt() -> None:
    tokens = prompt(500)
    async with bench(num_pages=128) as b:
        scored, plain = submit(b, tokens, 2), submit(b, tokens, 2, scoring=None)
        first, second = await asyncio.gather(told(scored), told(plain))
        assert first.ids == second.ids
        assert (first.computed, second.computed < 128) == (500, True)


async def test_a_request_that_gives_its_pages_up_tells_nothing_twice() -> None:
    tokens = prompt(400)
    async with bench(num_pages=64) as b:
        calm = await told(submit(b, tokens, 100))
    async with bench(num_pages=10) as b:
        urgent = b.submit(prompt(100, seed=2), 300, priority=-1)
        await until(lambda: urgent.num_generated > 5)
        victim = asyncio.create_task(told(submit(b, tokens, 100)))
        found = await victim
        await ids_of(urgent)
        assert b.metric("num_preemptions_total") > 0
        assert found.scores == calm.scores
        assert found.ids == calm.ids


async def test_a_prompt_that_is_cut_off_between_its_chunks_goes_on_where_it_was() -> None:
    """Its chunks are told as they come; an urgent request takes its pages after the first."""
    tokens = prompt(400)
    async with bench(num_pages=64) as b:
        calm = await told(submit(b, tokens))
    async with bench(num_pages=9) as b:
        request = submit(b, tokens)
        await until(lambda: request.num_scored > 0)
        urgent = b.submit(prompt(300, seed=2), 20, priority=-1)
        assert (await told(request)).scores == calm.scores
        await ids_of(urgent)
        assert b.metric("num_preemptions_total") > 0


@pytest.mark.parametrize("scoring", [None, PromptScoring(1, 1)])
@pytest.mark.parametrize("num_tokens", [1, 63, 64, 300])
async def test_no_token_is_chosen_where_none_is_wanted(scoring: PromptScoring | None, num_tokens: int) -> None:
    async with bench() as b:
        others = b.submit(words := prompt(30, seed=9), 50)
        found = await told(submit(b, prompt(num_tokens), 0, scoring))
        assert (found.ids, found.finish_reason) == ([], FinishReason.LENGTH)
        assert len(found.scores) == (0 if scoring is None else num_tokens - 1)
        assert found.computed == num_tokens
        assert await ids_of(others) == greedy_reference("llama", words, 50)
        await until(lambda: b.model.kv.held == 0)


async def test_what_torch_raises_fails_the_one_it_concerns(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench() as b:
        logits = b.model.transformer.logits

        def failing(hidden: Tensor) -> Tensor:
            if len(hidden) > 50:
                raise RuntimeError("out of memory")
            return logits(hidden)

        monkeypatch.setattr(b.model.transformer, "logits", failing)
        good, bad = b.submit(prompt(50), 40), submit(b, prompt(90, seed=1))
        with pytest.raises(Internal, match="RuntimeError"):
            await told(bad)
        assert await ids_of(good) == greedy_reference("llama", prompt(50), 40)
