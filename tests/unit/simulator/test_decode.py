import random
from functools import partial

import pytest

from shared.step_profile import StepProfile, num_pairs
from simulator.engines.decode import DecodeLimits, DecodeRequest, SimulatedDecode
from simulator.events import EventLoop

PROFILE = StepProfile(0.01, 1e-5, 1e-9, 1e-4, 1e-7)


class Asked:
    """One request: when it comes, its prompt, its answer; and when its first and last token were there."""

    def __init__(self, at_s: float, prompt: int, output: int) -> None:
        self.at_s, self.prompt, self.output = at_s, prompt, output
        self.first_s = self.last_s = float("nan")


def run(asked: list[Asked], step_tokens: int, max_batch: int, kv_tokens: float = float("inf")) -> SimulatedDecode:
    loop = EventLoop()
    worker = SimulatedDecode(loop, PROFILE, DecodeLimits(step_tokens, max_batch, kv_tokens))

    def come(one: Asked) -> None:
        def started() -> None:
            one.first_s = loop.now_s

        def ended() -> None:
            one.last_s = loop.now_s

        worker.add(DecodeRequest(one.prompt, one.output, lambda: 0, started, ended))

    for one in asked:
        loop.at(one.at_s, partial(come, one))
    loop.run()
    return worker


def step_by_step(asked: list[Asked], step_tokens: int, max_batch: int) -> list[tuple[float, float]]:
    """Return first and last token's times of every request, from a loop over all steps."""
    times: dict[int, list[float]] = {index: [] for index in range(len(asked))}
    coming = list(range(len(asked)))
    prompts: list[list[int]] = []  # index, tokens computed
    rows: dict[int, int] = {}  # index -> tokens of the answer
    now = 0.0
    while coming or prompts or rows:
        while coming and asked[coming[0]].at_s <= now and len(prompts) + len(rows) < max_batch:
            prompts.append([coming.pop(0), 0])
        if not prompts and not rows:
            now = asked[coming[0]].at_s
            continue
        budget, pairs, chunks = step_tokens, 0.0, []
        for prompt in prompts:
            index, done = prompt
            end = min(asked[index].prompt, done + budget)
            if budget:
                chunks.append((prompt, end))
                pairs += num_pairs(done, end)
                budget -= end - done
        context = sum(asked[index].prompt + tokens for index, tokens in rows.items())
        now += PROFILE.step_s(step_tokens - budget, pairs, len(rows), context)
        for index in rows:
            rows[index] += 1
        for prompt, end in chunks:
            prompt[1] = end
            if end == asked[prompt[0]].prompt:
                rows[prompt[0]] = 1
                times[prompt[0]].append(now)
        prompts = [prompt for prompt in prompts if prompt[1] < asked[prompt[0]].prompt]
        for index in [index for index, tokens in rows.items() if tokens == asked[index].output]:
            del rows[index]
            times[index].append(now)
    return [(first, last) for first, last in times.values()]


@pytest.mark.parametrize("seed", range(4))
def test_leaps_give_the_times_of_single_steps(seed: int) -> None:
    draw = random.Random(seed)
    at_s, asked = 0.0, []
    for _ in range(150):
        at_s += draw.expovariate(2.0)
        asked.append(Asked(at_s, draw.randint(1, 900), draw.randint(1, 200)))
    worker = run(asked, step_tokens=256, max_batch=12)
    expected = step_by_step(asked, step_tokens=256, max_batch=12)
    assert [(one.first_s, one.last_s) for one in asked] == [pytest.approx(pair, abs=1e-9) for pair in expected]
    assert worker.context_tokens == 0
    assert worker.kv_usage == 0.0


def test_long_answers_are_few_events() -> None:
    asked = [Asked(0.0, 100, 100_000), Asked(1.0, 100, 50_000)]
    loop_worker = run(asked, 512, 8)
    assert loop_worker.num_steps == pytest.approx(100_000, abs=100)
    assert loop_worker.meter.read()[0] >= 0


def test_requests_wait_for_the_batch_and_for_memory() -> None:
    asked = [Asked(0.0, 100, 50), Asked(0.0, 100, 50)]
    run(asked, 512, max_batch=1)
    assert asked[1].first_s > asked[0].last_s
    run(asked, 512, max_batch=8, kv_tokens=200)
    assert asked[1].first_s > asked[0].last_s
    run(asked, 512, max_batch=8, kv_tokens=400)
    assert asked[1].first_s < asked[0].last_s


def test_a_step_with_prompts_keeps_the_target_of_its_batch() -> None:
    target_s = 0.02
    profile = StepProfile(0.01, 1e-4, 0.0, 0.0, 0.0)
    loop = EventLoop()
    worker = SimulatedDecode(loop, profile, DecodeLimits(512, 8, inter_token_s=target_s))
    ends: list[float] = []
    first = DecodeRequest(1, 50, lambda: 0, lambda: None, lambda: ends.append(loop.now_s))
    second = DecodeRequest(2_000, 1, lambda: 0, lambda: ends.append(loop.now_s), lambda: None)
    worker.add(first)
    loop.at(0.005, lambda: worker.add(second))
    loop.run()
    assert ends[0] == pytest.approx(0.0101 + 20 * target_s), "100 tokens a step"
    assert ends[1] == pytest.approx(0.0101 + 20 * target_s + 29 * 0.01)


def test_what_is_left_of_a_prompt_goes_before_whole_ones() -> None:
    loop = EventLoop()
    worker = SimulatedDecode(loop, StepProfile(0.01, 1e-4), DecodeLimits(500, 8, block_tokens=64))
    order: list[str] = []
    for name, cached in (("whole", 0), ("another", 0), ("handed over", 1_990)):
        request = DecodeRequest(2_000, 1, partial(int, cached), partial(order.append, name), lambda: None)
        request.expected_first = cached
        worker.add(request)
    loop.run()
    assert order == ["handed over", "whole", "another"]


def test_what_does_not_fit_runs_alone() -> None:
    asked = [Asked(0.0, 1000, 5)]
    run(asked, 512, max_batch=8, kv_tokens=10)
    assert asked[0].last_s > 0


def test_a_lost_worker_says_how_far_each_request_was() -> None:
    loop = EventLoop()
    worker = SimulatedDecode(loop, StepProfile(0.1, 0.0), DecodeLimits(512, 8))
    request = DecodeRequest(10, 100, lambda: 9, lambda: None, lambda: None)
    worker.add(request)
    loop.run(1.05)
    worker.stop()
    assert request.num_left == 90  # the first token after a step, nine more since
    assert worker.num_running == 0
    loop.run()
    assert loop.now_s == 1.05
