"""Steps that are launched before the one before is read: the same tokens, whatever happens in between."""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from services.decode.request import FinishReason, Request
from services.decode.steps.ahead import AheadRunner
from services.decode.steps.runner import Runner
from shared.errors import Draining, Internal
from shared.model.transformer import Transformer
from shared.sampling.logprobs import PromptScoring, TokenLogprobs
from shared.sampling.params import SamplingParams
from tests.support.decoding import DecodeBench, decode_bench, ids_of, words
from tests.support.graphs import Rerun, TensorAttention
from tests.support.parts import generation
from tests.support.structured import grammars_of, regex, save_tokenizer
from tests.support.tiny import MODELS, greedy_reference, tiny_model
from tests.support.waiting import until

MAX_BATCH = 6


@asynccontextmanager
async def bench(name: str = "llama", num_pages: int = 64) -> AsyncIterator[tuple[DecodeBench, Rerun]]:
    """Run an engine whose steps are captured, on a device that only runs them again."""
    plain, recorder = tiny_model(name, num_pages), Rerun()
    transformer = Transformer(plain.config, plain.transformer._weights, TensorAttention())
    transformer.capture_steps(plain.kv, 1024, MAX_BATCH, recorder)
    async with decode_bench(replace(plain, transformer=transformer), max_batch=MAX_BATCH) as b:
        yield b, recorder


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by one with each step that is not launched ahead."""
    run, steps = Runner.run, list[int]()

    def counted(self: Runner, step: Any) -> Any:
        steps.append(1)
        return run(self, step)

    monkeypatch.setattr(Runner, "run", counted)
    return steps


@pytest.mark.parametrize("name", MODELS)
async def test_tokens_are_those_of_the_plain_model(name: str, alone: list[int]) -> None:
    async with bench(name) as (b, recorder):
        lengths = [(70, 9), (5, 40), (64, 1), (130, 20), (63, 70), (1, 2), (200, 12), (30, 30)]
        requests = [b.submit(words(n, seed), count) for seed, (n, count) in enumerate(lengths)]
        found = await asyncio.gather(*map(ids_of, requests))
        for seed, (n, count) in enumerate(lengths):
            assert found[seed] == greedy_reference(name, words(n, seed), count)
        assert recorder.num_replayed > 50
        assert not alone


async def test_a_stop_token_ends_a_request_whose_next_step_is_under_way() -> None:
    async with bench() as (b, _):
        whole = greedy_reference("llama", words(50), 20)
        stop = next(token for i, token in enumerate(whole) if i >= 5 and token not in whole[:i])
        stopped, other = b.submit(words(50), 20, stop_token_ids=(stop,)), b.submit(words(40, 1), 30)
        events = [event async for event in stopped.events()]
        assert [token for event in events for token in event.ids] == whole[: whole.index(stop) + 1]
        assert events[-1].finish_reason is FinishReason.STOP
        assert await ids_of(other) == greedy_reference("llama", words(40, 1), 30)


@pytest.mark.parametrize(("name", "num_pages"), [("llama", 14), ("gemma3", 36)])
async def test_pages_run_out(name: str, num_pages: int) -> None:
    """Who is pre-empted has no step under way, and goes on with the same tokens."""
    async with bench(name, num_pages) as (b, _):
        requests = [b.submit(words(150, seed), 90) for seed in range(4)]
        found = await asyncio.gather(*map(ids_of, requests))
        assert b.metric("num_preemptions_total") > 0
        for seed, ids in enumerate(found):
            assert ids == greedy_reference(name, words(150, seed), 90)


async def test_who_is_more_urgent_takes_pages_while_steps_are_under_way() -> None:
    async with bench(num_pages=8) as (b, _):
        low = b.submit(words(300), 120, priority=1)
        await until(lambda: low.num_generated > 3)
        high = b.submit(words(200, 1), 20)
        assert await ids_of(high) == greedy_reference("llama", words(200, 1), 20)
        assert await ids_of(low) == greedy_reference("llama", words(300), 120)
        assert b.metric("num_preemptions_total") == 1


async def test_requests_that_sample_and_requests_that_do_not() -> None:
    async with bench() as (b, _):
        plain = b.submit(words(60), 40)
        await until(lambda: plain.num_generated > 3)
        drawn = [b.submit(words(30, 1), 10, temperature=1.0, seed=5) for _ in range(2)]
        penalised = b.submit(words(30, 2), 10, presence_penalty=1.0, min_tokens=4)
        first, second = await asyncio.gather(*map(ids_of, drawn))
        assert first == second
        assert len(await ids_of(penalised)) == 10
        assert await ids_of(plain) == greedy_reference("llama", words(60), 40)


async def test_aborts_at_any_time() -> None:
    rng = random.Random(1)
    async with bench(num_pages=24) as (b, _):
        kept = b.submit(words(90), 150)
        for seed in range(12):
            request = b.submit(words(rng.randrange(1, 200), seed), 60)
            await until(partial(_has_generated, request, rng.randrange(4)))
            b.engine.abort(request)
        assert await ids_of(kept) == greedy_reference("llama", words(90), 150)


def _has_generated(request: Request, count: int) -> bool:
    return request.num_generated >= count


async def test_clean_up_with_steps_under_way() -> None:
    async with bench() as (b, _):
        requests = [b.submit(words(100, seed), 300) for seed in range(4)]
        await until(lambda: requests[0].num_generated > 5)
        await b.stop()
        assert b.model.kv.held == 0
        for request in requests:
            with pytest.raises(Draining):
                await ids_of(request)


async def test_a_step_that_cannot_be_launched_runs_alone(monkeypatch: pytest.MonkeyPatch, alone: list[int]) -> None:
    launch, failures = AheadRunner._launch, [10, 11, 30]

    def failing(self: AheadRunner, *step: Any) -> Any:
        failing.count += 1  # type: ignore[attr-defined]
        if failing.count in failures:  # type: ignore[attr-defined]
            raise RuntimeError("out of memory")
        return launch(self, *step)

    failing.count = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(AheadRunner, "_launch", failing)
    async with bench() as (b, _):
        requests = [b.submit(words(60, seed), 40) for seed in range(3)]
        for seed, ids in enumerate(await asyncio.gather(*map(ids_of, requests))):
            assert ids == greedy_reference("llama", words(60, seed), 40)
        assert len(alone) == len(failures)


async def test_what_the_device_raises_ends_what_was_in_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench() as (b, recorder):
        replay, first = recorder.mark, b.submit(words(60), 300)
        await until(lambda: first.num_generated > 5)

        def broken() -> Any:
            def wait() -> None:
                raise RuntimeError("device lost")

            return wait

        monkeypatch.setattr(recorder, "mark", broken)
        with pytest.raises(Internal):
            await ids_of(first)
        monkeypatch.setattr(recorder, "mark", replay)


async def test_a_row_with_a_constraint_waits_for_its_tokens(tmp_path: Path, alone: list[int]) -> None:
    """The steps that it is in are not launched ahead; its neighbour's tokens stay the same, before, in and behind."""
    tokenizer, constraint = save_tokenizer(tmp_path), regex("(ab|ba){5,9}c")
    guide = await grammars_of(tmp_path).guide(constraint, (2,))
    async with bench("bytes") as (b, recorder):
        neighbour = b.submit(words(40), 90)
        await until(lambda: neighbour.num_generated > 5)
        assert not alone
        sampling = SamplingParams(max_tokens=60, temperature=0, constraint=constraint, stop_token_ids=(2,))
        bound = b.engine.submit(generation(b.model, words(30, 1), sampling=sampling, guide=guide))
        text = tokenizer.decode(await ids_of(bound))
        num_alone = len(alone)
        assert re.fullmatch(constraint.text, text)
        assert 1 <= num_alone <= len(text) + 1
        assert await ids_of(neighbour) == greedy_reference("bytes", words(40), 90)
        assert recorder.num_replayed > 80


@pytest.mark.parametrize("max_tokens", [0, 3])
async def test_what_is_told_of_a_prompt_comes_from_a_step_of_its_own_among_those_ahead(
    max_tokens: int, alone: list[int]
) -> None:
    tokens, scoring = words(200, 3), PromptScoring(1, 2)

    async def told(b: DecodeBench) -> tuple[list[int], list[TokenLogprobs]]:
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0)
        request = b.engine.submit(generation(b.model, tokens, sampling=sampling, scoring=scoring))
        events = [event async for event in request.events()]
        return [i for event in events for i in event.ids], [one for event in events for one in event.prompt_logprobs]

    async with decode_bench(tiny_model("llama")) as plain:
        expected = await told(plain)
    del alone[:]
    async with bench() as (b, _):
        others = [b.submit(words(40, seed), 60) for seed in range(2)]
        await until(lambda: all(other.num_generated > 3 for other in others))
        ids, scores = await told(b)
        assert ids == expected[0]
        assert [one.logprob for one in scores] == pytest.approx([one.logprob for one in expected[1]], abs=1e-4)
        assert len(scores) == 199
        assert 0 < len(alone) <= 200 // 16 + 1
        for seed, other in enumerate(others):
            assert await ids_of(other) == greedy_reference("llama", words(40, seed), 60)
