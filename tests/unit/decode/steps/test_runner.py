"""A step in the torch thread: tails by layers, batches by tokens, and errors that concern a part of it only."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from torch import Tensor

from services.decode.holding import Holding
from services.decode.request import Request
from services.decode.scheduler import Rank
from services.decode.steps.runner import DecodeStep, Runner, StepOutcome
from services.decode.tail import Tail
from shared.engine.packing import LayerPass, Packed, RowRange
from shared.engine.urgency import Urgency
from shared.model.layers.batch import Batch
from shared.model.pages.kv import PagedKv
from shared.model.sampler.sampling import Sampled
from shared.sampling.params import SamplingParams
from shared.step_profile import num_pairs
from tests.support.parts import generation
from tests.support.tiny import MODELS, greedy_reference, prompt, tiny_model

NUM_LAYERS = 4
CHUNK = 128
EOS = 0


class Bench:
    """A runner over a tiny model, and requests that hold pages for all that they will ever be."""

    def __init__(self, name: str = "llama") -> None:
        self.model = tiny_model(name)
        self.runner = Runner(self.model.transformer, self.model.kv)

    def request(self, tokens: list[int], sampling: SamplingParams | None = None, **changes: Any) -> Request:
        sampling = sampling or SamplingParams(max_tokens=50, temperature=0)
        request = Request(generation(self.model, tokens, sampling=sampling, **changes), Rank(0, 0), Urgency(0, 0), 64)
        reservation = self.model.kv.reserve([], len(tokens) + sampling.max_tokens)
        assert reservation is not None
        request.holding = Holding(reservation, Tail(0, len(tokens), CHUNK), [])
        return request

    def run(
        self,
        batch: Sequence[Request] = (),
        rows: Iterable[tuple[Request, int]] = (),
        passes: Iterable[tuple[int, int, Sequence[Request]]] = (),
    ) -> StepOutcome:
        """Run a step and do what the engine does with what came: tokens belong to their requests."""
        packed = Packed([RowRange(*row) for row in rows], [LayerPass(*gated) for gated in passes])
        outcome = self.runner.run(DecodeStep.of(packed, batch))
        for request, result in outcome.results.items():
            if isinstance(result, Sampled):
                request.tokens.append(result.token)
                request.held.tail = None
        return outcome

    def start(self, *requests: Request) -> None:
        """Run whole tails, chunk by chunk."""
        for request in requests:
            while (tail := request.held.tail) is not None:
                self.run(rows=[(request, tail.chunk_end - tail.first)])


def answer(request: Request) -> list[int]:
    return request.tokens[request.num_prompt_tokens :]


@pytest.mark.parametrize("name", MODELS)
async def test_a_ragged_step_makes_the_tokens_that_each_request_gets_alone(name: str) -> None:
    bench = Bench(name)
    prompts = [prompt(60, 1), prompt(CHUNK + 7, 2), prompt(3, 3), prompt(90, 4)]
    first, long, short, cut = requests = [bench.request(tokens) for tokens in prompts]
    bench.start(first)
    bench.run([first], [(long, CHUNK), (cut, 41)], [(0, 3, [short])])
    outcome = bench.run([first], [(long, 7), (cut, 49)], [(3, NUM_LAYERS, [short])])
    assert all(isinstance(result, Sampled) for result in outcome.results.values()), "all tails are at their end"
    for _ in range(20):
        bench.run(requests)
    for request, tokens in zip(requests, prompts, strict=True):
        assert answer(request) == greedy_reference(name, tokens, request.num_generated)
    assert [request.num_generated for request in requests] == [23, 21, 21, 21]


@pytest.mark.parametrize("name", MODELS)
async def test_gated_tails_at_one_layer_go_together(name: str) -> None:
    bench = Bench(name)
    prompts = [prompt(60, 1), prompt(17, 2), prompt(5, 3)]
    requests = [bench.request(tokens) for tokens in prompts]
    outcomes = [bench.run(passes=[(layer, layer + 1, requests)]) for layer in range(NUM_LAYERS)]
    assert [set(outcome.results.values()) for outcome in outcomes[:-1]] == [{None}] * (NUM_LAYERS - 1)
    for request, tokens in zip(requests, prompts, strict=True):
        assert answer(request) == greedy_reference(name, tokens, 1)


async def test_a_tail_says_nothing_before_its_last_layer_of_its_last_chunk() -> None:
    bench = Bench()
    request = bench.request(prompt(CHUNK + 1))
    layers = [(layer, layer + 1, [request]) for layer in range(NUM_LAYERS)]
    outcomes = [bench.run(passes=[gated]).results for gated in (*layers, *layers)]
    assert outcomes[:-1] == [{request: None}] * (2 * NUM_LAYERS - 1)
    assert answer(request) == greedy_reference("llama", prompt(CHUNK + 1), 1)


async def test_a_tail_that_fails_takes_nothing_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    requests = [bench.request(prompt(length, length)) for length in (40, 41, 42, 43, 44)]
    running, failing, going, gated, failing_gated = requests
    bench.start(running)
    layers = bench.model.transformer.layers

    def broken(first: int, end: int, hidden: Tensor, batch: Batch, kv: PagedKv) -> Tensor:
        if any(span.num_tokens in (41, 44) for span in batch.spans):
            raise RuntimeError("out of memory")
        return layers(first, end, hidden, batch, kv)

    with monkeypatch.context() as patch:
        patch.setattr(bench.model.transformer, "layers", broken)
        passes = [(0, NUM_LAYERS, [gated, failing_gated])]
        outcome = bench.run([running], [(failing, 41), (going, 42)], passes)
    assert {request for request, result in outcome.results.items() if isinstance(result, RuntimeError)} == {
        failing,
        failing_gated,
    }
    for request, length in ((running, 40), (going, 42), (gated, 43)):
        assert answer(request) == greedy_reference("llama", prompt(length, length), request.num_generated)
    assert running.num_generated == 2


async def test_a_batch_that_fails_takes_nothing_from_tails(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    running, tail = bench.request(prompt(40, 0)), bench.request(prompt(40, 1))
    bench.start(running)
    layers = bench.model.transformer.layers

    def broken(first: int, end: int, hidden: Tensor, batch: Batch, kv: PagedKv) -> Tensor:
        if any(span.start == 40 for span in batch.spans):
            raise RuntimeError("out of memory")
        return layers(first, end, hidden, batch, kv)

    with monkeypatch.context() as patch:
        patch.setattr(bench.model.transformer, "layers", broken)
        outcome = bench.run([running], [(tail, 40)])
    assert isinstance(outcome.results[running], RuntimeError)
    assert answer(tail) == greedy_reference("llama", prompt(40, 1), 1)
    bench.run([running])
    assert answer(running) == greedy_reference("llama", prompt(40, 0), 2), "the step can be run again"


async def test_an_answer_may_not_end_before_its_min_tokens() -> None:
    bench = Bench()
    sampling = SamplingParams(
        max_tokens=8, temperature=0, logit_bias=((EOS, 100.0),), min_tokens=3, stop_token_ids=(EOS,)
    )
    request = bench.request(prompt(40), sampling)
    bench.start(request)
    for _ in range(3):
        bench.run([request])
    assert [token == EOS for token in answer(request)] == [False, False, False, True]


async def test_penalties_count_the_answer_and_not_the_prompt() -> None:
    """A token that is 20 better than the next best gives way when it was said ten times, a few more or less.

    Of a request that another worker began, the last tokens are the answer's, although they come with the prompt.
    """
    bench = Bench()
    best, next_best = 7, 8
    bias = ((best, 100.0), (next_best, 80.0))
    sampling = SamplingParams(max_tokens=20, temperature=0, logit_bias=bias, frequency_penalty=2.0)
    tokens = [*prompt(40), *[best] * 20]
    new, continued = (bench.request(tokens, sampling, num_generated_before=before) for before in (0, 20))
    bench.start(new, continued)
    for _ in range(19):
        bench.run([new, continued])
    assert answer(new)[:5] == [best] * 5
    assert next_best in answer(new)
    assert answer(continued)[:5] == [next_best] * 5


async def test_the_work_of_a_step_is_its_tails_by_layers_and_its_batch_by_context() -> None:
    bench = Bench()
    running, tail, gated = bench.request(prompt(60, 1)), bench.request(prompt(100, 2)), bench.request(prompt(40, 3))
    bench.start(running)
    bench.run(rows=[(tail, 30)])
    packed = Packed([RowRange(tail, 20)], [LayerPass(1, 3, [gated])])
    work = DecodeStep.of(packed, [running]).work(NUM_LAYERS)
    assert work.num_tokens == 20 + 40 / 2
    assert work.num_pairs == num_pairs(30, 50) + num_pairs(0, 40) / 2
    assert (work.num_rows, work.context_tokens) == (1, 61)
