"""The decoder against transformers, in float32: every family, every way to cut a sequence into steps."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.model.layers.batch import Batch, Span
from shared.model.pages.groups import PageGroups
from shared.model.pages.kv import PagedKv
from shared.model.pages.reservation import Reservation
from tests.support.checkpoints import Tiny, random_ids, run, tables

LENGTH = 70  # more than five windows of the windowed checkpoints, and not a multiple of a page
TOLERANCE = 1e-4


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == torch.float32
    assert expected.abs().max() > 1, "logits this small would hide an error"
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("splits", [[], [1], [64], [8, 16, 47, 48, 69], [37, 38, 39]])
def test_logits_equal_however_the_prompt_is_split(any_model: Tiny, splits: list[int]) -> None:
    ids = random_ids(LENGTH)
    kv = any_model.cache()
    assert_close(run(any_model.model, kv, range(9), ids, splits), any_model.expected(ids))


def test_decoding_one_by_one(any_model: Tiny) -> None:
    ids = random_ids(LENGTH, seed=1)
    kv = any_model.cache()
    assert_close(run(any_model.model, kv, range(9), ids, list(range(33, LENGTH))), any_model.expected(ids))


def test_pages_in_any_order(any_model: Tiny) -> None:
    ids = random_ids(LENGTH, seed=2)
    kv = any_model.cache()
    pages = [11, 3, 4, 5, 0, 15, 7, 1, 9]
    assert_close(run(any_model.model, kv, pages, ids, [20, 50, 51]), any_model.expected(ids))


def test_ragged_batch(any_model: Tiny) -> None:
    """A first chunk, a later chunk and a decode step of three sequences in one batch."""
    model, kv = any_model.model, any_model.cache(num_pages=32)
    sequences = [random_ids(LENGTH, seed) for seed in (3, 4, 5)]
    pages = [range(9), [9, 11, 13, 10, 12, 14, 16, 15, 17], range(18, 27)]
    starts = [0, 30, 69]
    for ids, own, start in zip(sequences, pages, starts, strict=True):
        if start:
            run(model, kv, own, ids[:start], [])
    ends = [45, LENGTH, LENGTH]
    spans = [Span(tables(kv, own), start, end - start) for own, start, end in zip(pages, starts, ends, strict=True)]
    batch = Batch.build(spans, kv.page_tokens)
    tokens = [t for ids, start, end in zip(sequences, starts, ends, strict=True) for t in ids[start:end]]
    logits = model.logits(model.forward(torch.tensor(tokens), batch, kv))
    row = 0
    for ids, start, end in zip(sequences, starts, ends, strict=True):
        assert_close(logits[row : row + end - start], any_model.expected(ids)[start:end])
        row += end - start


@pytest.mark.parametrize("end", [1, 17, 64, LENGTH])
def test_a_span_that_stores_nothing_reads_its_own_tokens_from_the_pages(any_model: Tiny, end: int) -> None:
    """Others may be reading them: they do not change, and what they say counts. Another span of the step stores."""
    model, kv, ids = any_model.model, any_model.cache(num_pages=32), random_ids(LENGTH, seed=11)
    other, others = random_ids(24, seed=12), range(20, 23)

    def last(stores: bool) -> torch.Tensor:
        spans = [Span(tables(kv, others), 0, 24), Span(tables(kv, range(9)), end - 1, 1, stores)]
        step = torch.tensor([*other, ids[end - 1]])
        logits = model.logits(model.forward(step, Batch.build(spans, kv.page_tokens), kv)).clone()
        assert_close(logits[:-1], any_model.expected(other))
        return logits[-1:]

    run(model, kv, range(9), ids[:end], [])
    written = last(stores=True)
    pages = [kv.blocks_of(layer).clone() for layer in range(model.num_layers)]
    assert torch.equal(last(stores=False), written)
    assert all(torch.equal(kv.blocks_of(layer), before) for layer, before in enumerate(pages))
    assert_close(written, any_model.expected(ids[:end])[-1:])
    page, offset = divmod(end - 1, kv.page_tokens)
    for layer in range(model.num_layers):
        kv.values_of(layer)[tables(kv, [page])[kv.group_of(layer)], offset] += 1
    assert not torch.allclose(last(stores=False), written)


def test_layers_of_two_batches_interleaved(gemma: Tiny) -> None:
    """Layer gating: one batch stands between layers while another runs all of its own."""
    model, kv = gemma.model, gemma.cache(num_pages=32)
    slow, fast = random_ids(40, seed=6), random_ids(25, seed=7)
    slow_batch = Batch.build([Span(tables(kv, range(5)), 0, 40)], kv.page_tokens)
    hidden = model.embed(torch.tensor(slow))
    for index in range(model.num_layers):
        hidden = model.layers(index, index + 1, hidden, slow_batch, kv)
        assert_close(run(model, kv, range(8, 12), fast, [13]), gemma.expected(fast))
    assert_close(model.logits(hidden), gemma.expected(slow))


def test_a_layer_completes_its_own_kv_only(gemma: Tiny) -> None:
    model, kv = gemma.model, gemma.cache()
    batch = Batch.build([Span(tables(kv, range(3)), 0, 20)], kv.page_tokens)
    hidden = model.layer(0, model.embed(torch.tensor(random_ids(20))), batch, kv)
    own = tables(kv, range(3))[kv.group_of(0)]
    assert kv.keys_of(0)[own].flatten(0, 1)[:20].abs().amin(dim=(1, 2)).gt(0).all()
    kv.keys_of(0)[own[0]] = kv.keys_of(0)[own[1]] = kv.keys_of(0)[own[2], :4] = 0
    assert all(kv.keys_of(layer).eq(0).all() for layer in range(3))
    assert hidden.shape == (20, gemma.config.hidden_size)


def test_window_layers_never_read_behind_the_window(gemma: Tiny) -> None:
    """What a resume does not need may be garbage: the pool never sends it."""
    ids = random_ids(LENGTH, seed=8)
    kv = gemma.cache()
    run(gemma.model, kv, range(9), ids[:64], [])
    layout = kv.layout
    for index, spec in enumerate(layout.layers):
        if spec.window is not None:
            first = layout.first_block_needed(spec.window, 8)
            assert first > 0
            behind = tables(kv, range(first))[kv.group_of(index)]
            kv.keys_of(index)[behind] = float("nan")
            kv.values_of(index)[behind] = float("nan")
    batch = Batch.build([Span(tables(kv, range(9)), 64, 6)], kv.page_tokens)
    logits = gemma.model.logits(gemma.model.forward(torch.tensor(ids[64:]), batch, kv))
    assert_close(logits, gemma.expected(ids)[64:])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(splits=st.sets(st.integers(1, LENGTH - 1), max_size=6), pages=st.permutations(range(16)))
def test_any_split_on_any_pages(gemma: Tiny, splits: set[int], pages: list[int]) -> None:
    ids = random_ids(LENGTH, seed=9)
    assert_close(run(gemma.model, gemma.cache(), pages, ids, sorted(splits)), gemma.expected(ids))


def test_greedy_text_equals_generate(any_model: Tiny) -> None:
    prompt = random_ids(30, seed=10)
    kv = any_model.cache()
    ids = list(prompt)
    logits = run(any_model.model, kv, range(9), ids, [])
    while len(ids) < 50:
        ids.append(int(logits[-1].argmax()))
        batch = Batch.build([Span(tables(kv, range(9)), len(ids) - 1, 1)], kv.page_tokens)
        logits = any_model.model.logits(any_model.model.forward(torch.tensor(ids[-1:]), batch, kv))
    generated = any_model.oracle.generate(
        torch.tensor([prompt]), max_new_tokens=20, min_new_tokens=20, do_sample=False, eos_token_id=None
    )
    assert ids == generated[0].tolist()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(splits=st.sets(st.integers(1, LENGTH - 1), max_size=8), page_tokens=st.sampled_from([4, 8]))
def test_sliding_as_it_goes_changes_nothing(gemma: Tiny, splits: set[int], page_tokens: int) -> None:
    """Two sequences take turns in a pool that holds them only because they slide; what nobody holds is not a number."""
    ends = [*sorted(splits), LENGTH]
    stride = max(end - start for start, end in zip([0, *ends], ends, strict=False))
    layout = gemma.config.kv_layout(page_tokens, "float32")
    groups = PageGroups.of(layout)
    kv = PagedKv(layout, 2 * groups.pages_needed(LENGTH, stride, page_tokens), page_tokens)
    prompts = [random_ids(LENGTH, seed) for seed in (11, 12)]
    held = [kv.reserve([], LENGTH, stride) for _ in prompts]
    logits: list[list[torch.Tensor]] = [[], []]
    start = 0
    for end in ends:
        for ids, reservation, out in zip(prompts, held, logits, strict=True):
            assert reservation is not None
            kv.slide(reservation, start)
            assert kv.cover(reservation, start, end)
            _spoil_what_is_free(kv, held)
            batch = Batch.build([Span(reservation.tables, start, end - start)], page_tokens)
            hidden = gemma.model.forward(torch.tensor(ids[start:end]), batch, kv)
            out.append(gemma.model.logits(hidden).clone())
        start = end
    for ids, out in zip(prompts, logits, strict=True):
        assert_close(torch.cat(out), gemma.expected(ids))


def _spoil_what_is_free(kv: PagedKv, held: list[Reservation | None]) -> None:
    used = {page for reservation in held if reservation for table in reservation.tables for page in table}
    for page in set(range(kv.num_pages)) - used:
        kv.keys_of(0)[page] = kv.values_of(0)[page] = float("nan")
