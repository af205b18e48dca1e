"""A step in the torch thread: tails by layers, batches by tokens, and errors that concern a part of it only."""

from collections.abc import Sequence

import pytest

from services.decode.holding import Holding
from services.decode.request import Request
from services.decode.runner import DecodeStep, Runner, StepOutcome
from services.decode.scheduler import Rank, Slice
from services.decode.tail import Tail
from shared.model.sampler.sampling import Sampled
from shared.sampling.params import SamplingParams
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

    def request(self, tokens: list[int], sampling: SamplingParams | None = None) -> Request:
        sampling = sampling or SamplingParams(max_tokens=50, temperature=0)
        request = Request(generation(self.model, tokens, sampling=sampling), Rank(0, 0))
        reservation = self.model.kv.reserve([], len(tokens) + sampling.max_tokens)
        assert reservation is not None
        request.holding = Holding(reservation, Tail(0, len(tokens), CHUNK), [])
        return request

    def run(self, slices: Sequence[Slice[Request]] = (), batch: Sequence[Request] = ()) -> StepOutcome:
        """Run a step and do what the engine does with what came: tokens belong to their requests."""
        outcome = self.runner.run(DecodeStep.of(slices, batch))
        for (request, _), sampled in zip(slices, outcome.tails, strict=True):
            if isinstance(sampled, Sampled):
                request.tokens.append(sampled.token)
        if not isinstance(outcome.batch, RuntimeError):
            for request, sampled in zip(batch, outcome.batch, strict=True):
                request.tokens.append(sampled.token)
        return outcome

    def start(self, *requests: Request) -> None:
        """Run whole tails, chunk by chunk."""
        for request in requests:
            while not request.num_generated:
                self.run([Slice(request, NUM_LAYERS)])


def answer(request: Request) -> list[int]:
    return request.tokens[request.num_prompt_tokens :]


@pytest.mark.parametrize("name", MODELS)
async def test_tails_and_batches_make_the_tokens_that_each_request_gets_alone(name: str) -> None:
    bench = Bench(name)
    prompts = [prompt(60, 1), prompt(CHUNK + 7, 2), prompt(3, 3)]
    first, second, third = requests = [bench.request(tokens) for tokens in prompts]
    bench.start(first)
    bench.run([Slice(second, NUM_LAYERS), Slice(third, 3)], [first])
    outcome = bench.run([Slice(second, NUM_LAYERS), Slice(third, 1)], [first])
    assert all(isinstance(sampled, Sampled) for sampled in outcome.tails), "both tails are at their end"
    for _ in range(20):
        bench.run(batch=requests)
    for request, tokens in zip(requests, prompts, strict=True):
        assert answer(request) == greedy_reference(name, tokens, request.num_generated)
    assert [request.num_generated for request in requests] == [23, 21, 21]


async def test_a_tail_says_nothing_before_its_last_layer_of_its_last_chunk() -> None:
    bench = Bench()
    request = bench.request(prompt(CHUNK + 1))
    outcomes = [bench.run([Slice(request, 1)]).tails for _ in range(2 * NUM_LAYERS)]
    assert outcomes[:-1] == [[None]] * (2 * NUM_LAYERS - 1)
    assert answer(request) == greedy_reference("llama", prompt(CHUNK + 1), 1)


async def test_a_tail_that_fails_takes_nothing_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    running, failing, going = (bench.request(prompt(40, seed)) for seed in range(3))
    bench.start(running)
    layers = bench.model.transformer.layers
    fails = iter([True])

    def broken(*args: object) -> object:
        if next(fails, False):
            raise RuntimeError("out of memory")
        return layers(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(bench.model.transformer, "layers", broken)
        outcome = bench.runner.run(DecodeStep.of([Slice(failing, NUM_LAYERS), Slice(going, NUM_LAYERS)], [running]))
    error, sampled = outcome.tails
    assert isinstance(error, RuntimeError)
    assert isinstance(sampled, Sampled)
    assert [sampled.token] == greedy_reference("llama", prompt(40, 2), 1)
    assert isinstance(outcome.batch, list)
    assert [*answer(running), outcome.batch[0].token] == greedy_reference("llama", prompt(40, 0), 2)


async def test_a_batch_that_fails_takes_nothing_from_tails(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    running, tail = bench.request(prompt(40, 0)), bench.request(prompt(40, 1))
    bench.start(running)

    def broken(*_args: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(bench.model.transformer, "decode", broken)
        outcome = bench.run([Slice(tail, NUM_LAYERS)], [running])
    assert isinstance(outcome.batch, RuntimeError)
    assert answer(tail) == greedy_reference("llama", prompt(40, 1), 1)
    bench.run(batch=[running])
    assert answer(running) == greedy_reference("llama", prompt(40, 0), 2), "the step can be run again"


async def test_an_answer_may_not_end_before_its_min_tokens() -> None:
    bench = Bench()
    sampling = SamplingParams(
        max_tokens=8, temperature=0, logit_bias=((EOS, 100.0),), min_tokens=3, stop_token_ids=(EOS,)
    )
    request = bench.request(prompt(40), sampling)
    bench.start(request)
    for _ in range(3):
        bench.run(batch=[request])
    assert [token == EOS for token in answer(request)] == [False, False, False, True]


async def test_penalties_count_what_was_generated_and_not_the_prompt() -> None:
    """A bias so strong that it wins every time, and a penalty that lets it win just once."""
    bench = Bench()
    favourite = 7
    sampling = SamplingParams(
        max_tokens=8, temperature=0, logit_bias=((favourite, 1.0e2),), presence_penalty=2.0, repetition_penalty=1.0
    )
    free = SamplingParams(max_tokens=8, temperature=0, logit_bias=((favourite, 100.0),))
    assert sampling.has_penalties
    assert not free.has_penalties
    tokens = [favourite] * 20
    penalised, unpenalised = bench.request(tokens, sampling), bench.request(tokens, free)
    bench.start(penalised, unpenalised)
    assert penalised.history is not None
    assert unpenalised.history is None
    assert (answer(penalised), answer(unpenalised)) == ([favourite], [favourite])
