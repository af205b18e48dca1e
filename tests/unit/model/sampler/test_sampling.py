"""Sampling: every parameter against a plain reference, distribution, and independence of the batch."""

import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.model.sampler.penalties import TokenHistory
from shared.model.sampler.sampling import Row, sample
from shared.sampling.params import SamplingParams, uniform

BASE = SamplingParams(max_tokens=50)


def logits_of(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def tokens_of(logits: torch.Tensor, rows: list[Row]) -> list[int]:
    return [sampled.token for sampled in sample(logits.clone(), rows)]


def draws(row: list[float], params: SamplingParams, count: int = 2000) -> list[int]:
    return tokens_of(logits_of(row).expand(count, -1), [Row(params, position) for position in range(count)])


def row_of(params: SamplingParams, prompt: list[int], generated: list[int]) -> Row:
    history = TokenHistory([*prompt, *generated], len(prompt)) if params.has_penalties else None
    return Row(params, len(prompt) + len(generated), len(generated) >= params.min_tokens, history)


def reference(logits: list[float], params: SamplingParams, prompt: list[int], generated: list[int]) -> int:
    """One row in plain Python, in the order that `SamplingParams` states."""
    biases, may_end = dict(params.logit_bias), len(generated) >= params.min_tokens
    adjusted: list[float] = []
    for token, logit in enumerate(logits):
        value = logit + biases.get(token, 0.0)
        if token in params.stop_token_ids and not may_end:
            value = -math.inf
        if token in prompt or token in generated:
            value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        value -= params.frequency_penalty * generated.count(token)
        value -= params.presence_penalty * (token in generated)
        adjusted.append(value)
    if params.greedy:
        return adjusted.index(max(adjusted))
    best = max(adjusted)
    likelihoods = [math.exp((value - best) / params.temperature) for value in adjusted]
    unit = 2.0 ** (53 - (len(logits) - 1).bit_length())
    weights = [math.floor(x * unit) if x >= params.min_p else 0 for x in likelihoods]
    order = list(range(len(logits)))
    if 0 < params.top_k < len(logits) or params.top_p < 1:
        order = sorted(order, key=lambda token: -adjusted[token])[: params.top_k or None]
        total, before, kept = sum(weights[token] for token in order), 0, []
        for token in order:
            if before < params.top_p * total:
                kept.append(token)
            before += weights[token]
        order = kept
    target = math.floor(uniform(params.seed, len(prompt) + len(generated)) * sum(weights[token] for token in order))
    for token in order:
        target -= weights[token]
        if target < 0:
            return token
    raise AssertionError("nothing was drawn")


VOCAB = 12
token_ids = st.integers(0, VOCAB - 1)
eighths = st.integers(-80, 80).map(lambda n: n / 8)  # exact in float32, also where they are added and halved
any_params = st.builds(
    SamplingParams,
    max_tokens=st.just(50),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.01]),
    top_k=st.sampled_from([0, 1, 3, VOCAB]),
    min_p=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    presence_penalty=st.sampled_from([0.0, 0.5, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.25, -1.0]),
    repetition_penalty=st.sampled_from([1.0, 2.0, 0.5]),
    logit_bias=st.dictionaries(token_ids, st.sampled_from([-100.0, -1.5, 3.0, 100.0]), max_size=3).map(
        lambda biases: tuple(biases.items())
    ),
    seed=st.integers(0, 2**64 - 1),
    min_tokens=st.integers(0, 4),
    stop_token_ids=st.lists(token_ids, max_size=2).map(tuple),
)
any_row = st.tuples(
    st.lists(eighths, min_size=VOCAB, max_size=VOCAB),
    any_params,
    st.lists(token_ids, min_size=1, max_size=6),
    st.lists(token_ids, max_size=6),
)


@settings(max_examples=150)
@given(st.lists(any_row, min_size=1, max_size=4))
def test_a_batch_is_what_a_plain_reference_makes_of_each_row(
    batch: list[tuple[list[float], SamplingParams, list[int], list[int]]],
) -> None:
    logits = logits_of(*(row[0] for row in batch))
    rows = [row_of(params, prompt, generated) for _, params, prompt, generated in batch]
    assert tokens_of(logits, rows) == [reference(*row) for row in batch]


def random_batch(vocab_size: int) -> tuple[torch.Tensor, list[tuple[SamplingParams, list[int], list[int]]]]:
    """Return logits and rows of every kind."""
    rng = random.Random(vocab_size)
    torch.manual_seed(0)
    rows = []
    for i in range(40):
        params = SamplingParams(
            max_tokens=50,
            temperature=rng.choice([0, 0.3, 1, 3]),
            top_p=rng.choice([1, 0.95, 0.3]),
            top_k=rng.choice([0, 5, 600, 3000]),
            min_p=rng.choice([0, 0.05]),
            presence_penalty=rng.choice([0, 1]),
            repetition_penalty=rng.choice([1, 1.3]),
            seed=i,
            num_logprobs=rng.choice([None, 0, 5]),
        )
        rows.append((params, rng.choices(range(vocab_size), k=30), rng.choices(range(vocab_size), k=i)))
    return torch.randn(40, vocab_size) * 3, rows


@pytest.mark.parametrize("vocab_size", [900, 40_000])  # more rows than are drawn at once
def test_a_row_does_not_depend_on_its_batch(vocab_size: int) -> None:
    logits, batch = random_batch(vocab_size)
    together = sample(logits.clone(), [row_of(*row) for row in batch])
    alone = [sample(logits[i : i + 1].clone(), [row_of(*row)])[0] for i, row in enumerate(batch)]
    backwards = sample(logits.flip(0), [row_of(*row) for row in batch[::-1]])[::-1]
    assert together == alone == backwards


def test_the_narrow_view_of_a_large_vocabulary_changes_nothing() -> None:
    torch.manual_seed(1)
    smooth = (torch.randn(9000) * 4).tolist()
    flat, tied = (torch.randn(9000) * 0.1).tolist(), [1.0] * 9000
    kinds = [{"top_p": 0.9}, {"top_k": 40}, {"top_k": 700}, {"top_k": 40, "top_p": 0.5}, {"top_p": 0.9, "min_p": 0.2}]
    for logits in (smooth, flat, tied):
        exact = logits_of(logits)[0].tolist()
        cases = [(replace(BASE, seed=seed, **kind), seed) for kind in kinds for seed in range(4)]  # type: ignore[arg-type]
        found = tokens_of(logits_of(*[logits] * len(cases)), [Row(params, at) for params, at in cases])
        assert found == [reference(exact, params, list(range(at)), []) for params, at in cases]


def test_greedy_takes_the_first_maximum() -> None:
    greedy = Row(replace(BASE, temperature=0), 3)
    assert tokens_of(logits_of([0, 2, 1], [5, 5, 1]), [greedy] * 2) == [1, 0]


def test_frequencies_follow_the_distribution() -> None:
    row = [math.log(p) for p in (0.5, 0.3, 0.2)]
    chosen = draws(row, replace(BASE, seed=1))
    for token, probability in enumerate((0.5, 0.3, 0.2)):
        assert abs(chosen.count(token) / 2000 - probability) < 0.04
    sharp = draws(row, replace(BASE, temperature=0.5, seed=1))
    assert abs(sharp.count(0) / 2000 - 0.25 / 0.38) < 0.04


def test_filters() -> None:
    row = [math.log(p) for p in (0.1, 0.4, 0.2, 0.3)]
    assert set(draws(row, replace(BASE, top_k=2), 300)) == {1, 3}
    assert set(draws(row, replace(BASE, top_k=1), 20)) == {1}
    assert set(draws(row, replace(BASE, top_p=0.69), 300)) == {1, 3}
    assert set(draws(row, replace(BASE, top_p=0.71), 300)) == {1, 2, 3}
    assert set(draws(row, replace(BASE, top_p=1e-6), 20)) == {1}
    assert set(draws(row, replace(BASE, min_p=0.6), 300)) == {1, 3}  # at least 0.24
    assert set(draws(row, replace(BASE, min_p=0.4), 300)) == {1, 2, 3}
    # top-p acts on what top-k left, renormalised: 0.4 / 0.7 is above one half
    assert set(draws(row, replace(BASE, top_k=2, top_p=0.5), 100)) == {1}


def test_top_k_breaks_ties_by_lower_id() -> None:
    assert set(draws([1.0] * 10, replace(BASE, top_k=3), 200)) == {0, 1, 2}


def test_stop_tokens_wait_for_min_tokens() -> None:
    greedy = replace(BASE, temperature=0, min_tokens=2, stop_token_ids=(1,))
    warm = replace(BASE, min_tokens=2, stop_token_ids=(1, 0))
    rows = [Row(greedy, 5), Row(greedy, 5, may_end=False), Row(warm, 5, may_end=False)]
    assert tokens_of(logits_of(*[[0.0, 9.0, 5.0]] * 3), rows) == [1, 2, 2]


def test_impossible_tokens_are_never_drawn() -> None:
    row = [float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]
    for params in (BASE, replace(BASE, top_p=0.999), replace(BASE, top_k=4), replace(BASE, temperature=1e-40)):
        assert set(draws(row, params, 300)) == {1, 3}


def test_repetition_counts_the_prompt_and_the_others_do_not() -> None:
    logits = logits_of([2.0, 1.9, 1.8, -3.0])
    prompt, generated = [0, 0], [1]

    def greedy(**penalties: float) -> int:
        params = replace(BASE, temperature=0, **penalties)  # type: ignore[arg-type]
        return tokens_of(logits, [row_of(params, prompt, generated)])[0]

    assert greedy() == 0
    assert greedy(repetition_penalty=1.5) == 2
    assert greedy(presence_penalty=2) == 0
    assert greedy(presence_penalty=-0.5) == 1
    assert greedy(frequency_penalty=-0.5) == 1


def test_a_history_follows_its_sequence() -> None:
    tokens = [4, 4, 7]
    history = TokenHistory(tokens, 2)
    assert [column.tolist() for column in history.seen()] == [[4, 7], [0, 1]]
    tokens += [4, 9, 4]
    assert [column.tolist() for column in history.seen()] == [[4, 7, 9], [2, 1, 1]]


def test_logprobs_are_those_of_the_model_itself() -> None:
    logits = logits_of(*[[1.0, 3.0, 2.0, 2.0]] * 3)
    expected = logits.log_softmax(-1)[0].tolist()
    changed = replace(BASE, temperature=0, logit_bias=((0, 50.0),), num_logprobs=3)
    rows = [Row(changed, 0), Row(replace(BASE, temperature=0, num_logprobs=0), 0), Row(BASE, 0)]
    first, second, third = sample(logits, rows)
    assert first.token == 0
    assert first.logprobs is not None
    assert first.logprobs.logprob == pytest.approx(expected[0])
    assert [token for token, _ in first.logprobs.top] == [1, 2, 3]
    assert [value for _, value in first.logprobs.top] == pytest.approx([expected[i] for i in (1, 2, 3)])
    assert second.logprobs is not None
    assert (second.token, second.logprobs.top, third.logprobs) == (1, (), None)
    assert second.logprobs.logprob == pytest.approx(expected[1])
