"""Steps from graphs, on a CPU: a replay reads nothing but the numbers that were sent, and padding has no say."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from shared.model.cuda.graphs import MAX_ROWS, GraphOutput, GraphSize, StepGraphs, padded, padded_rows
from shared.model.files.config import ModelConfig
from shared.model.files.stored import stored_tensors
from shared.model.layers.batch import Batch, Span
from shared.model.layers.layer_weights import ModelWeights
from shared.model.pages.kv import PagedKv
from shared.model.transformer import Transformer
from tests.support.graphs import Rerun, TensorAttention
from tests.support.tiny import MODELS, prompt

PAGE, LONGEST = 64, 512
MAX_BATCH, MAX_SPANS = 6, 8  # spans are padded
DEVICE = torch.device("cpu")


class Model:
    """A tiny model that computes eagerly, its twin that computes from graphs, and the pages of each."""

    def __init__(self, name: str, max_batch: int = MAX_BATCH) -> None:
        config = ModelConfig.from_dict(MODELS[name], name)
        generator = torch.Generator().manual_seed(1)
        weights = {
            t.name: torch.ones(t.shape) if "norm" in t.name else torch.randn(t.shape, generator=generator) * 0.2
            for t in stored_tensors(config)
        }
        self.plain = Transformer(config, ModelWeights.build(config, weights))
        self.captured = Transformer(config, ModelWeights.build(config, weights), TensorAttention())
        layout = config.kv_layout(PAGE, "float32")
        self.kvs = PagedKv(layout, 60, PAGE), PagedKv(layout, 60, PAGE)
        self.recorder = Rerun()
        self.captured.capture_steps(self.kvs[1], LONGEST, max_batch, self.recorder)

    def tables(self, *pages: int) -> list[list[int]]:
        return [list(pages) for _ in range(self.kvs[0].num_groups)]

    def step(self, token_ids: Sequence[int], spans: Sequence[Span]) -> None:
        """Run a step both ways: states, logits and pages agree."""
        expected = self.plain.step(token_ids, spans, self.kvs[0]).hidden
        before = self.recorder.num_replayed
        actual = self.captured.step(token_ids, spans, self.kvs[1])
        assert self.recorder.num_replayed == before + 1
        torch.testing.assert_close(actual.hidden, expected, atol=1e-3, rtol=1e-3)
        logits = self.plain.logits(expected)
        assert actual.logits is not None and actual.best is not None  # noqa: PT018
        torch.testing.assert_close(actual.logits, logits, atol=1e-2, rtol=1e-3)
        assert actual.best() == logits.argmax(dim=-1).tolist()
        for layer in range(self.plain.num_layers):
            for ours, theirs in zip(*((kv.keys_of(layer), kv.values_of(layer)) for kv in self.kvs), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@pytest.fixture(params=list(MODELS), scope="module")
def model(request: pytest.FixtureRequest) -> Model:
    return Model(request.param)


def test_steps_of_any_mix_are_those_of_the_plain_model(model: Model) -> None:
    long, short, third = prompt(200, 1), prompt(70, 2), prompt(40, 3)
    pages = [model.tables(5, 3, 9, 1), model.tables(2, 8), model.tables(7)]
    model.step(long[:150], [Span(pages[0], 0, 150)])
    model.step([*long[150:190], *short], [Span(pages[0], 150, 40), Span(pages[1], 0, 70)])
    model.step([long[190], *third[:20], 5], [Span(pages[0], 190, 1), Span(pages[2], 0, 20), Span(pages[1], 70, 1)])
    model.step([7, 11, third[20]], [Span(pages[0], 191, 1), Span(pages[1], 71, 1), Span(pages[2], 20, 1)])
    model.step([7], [Span(pages[0], 192, 1)])


def test_a_span_that_stores_nothing_leaves_pages_as_they_are(model: Model) -> None:
    ids, pages = prompt(64, 4), model.tables(20)
    model.step(ids, [Span(pages, 0, 64)])
    model.step([ids[-1]], [Span(pages, 63, 1, stores=False)])
    model.step([ids[-1], *ids], [Span(pages, 63, 1, stores=False), Span(model.tables(21), 0, 64)])


def test_a_step_takes_tokens_from_the_one_before_that_nobody_has_read(model: Model) -> None:
    ids = [*prompt(30, 5), *prompt(20, 6)]
    pages = [model.tables(40), model.tables(41)]
    steps = [
        [Span(pages[0], 0, 30), Span(pages[1], 0, 20)],
        [Span(pages[1], 20, 1), Span(pages[0], 30, 1)],
        [Span(pages[1], 21, 1), Span(pages[0], 31, 1), Span(model.tables(42), 0, 1)],
    ]
    expected: list[list[int]] = []
    for spans in steps:
        known = ids if not expected else expected[-1][:2] if len(expected) > 1 else expected[0][::-1]
        hidden = model.plain.step([*known, 9][: sum(s.num_tokens for s in spans)], spans, model.kvs[0]).hidden
        expected.append(model.plain.logits(hidden).argmax(dim=-1).tolist())
    afters = [
        model.captured.step(tokens, spans, model.kvs[1])
        for tokens, spans in zip((ids, [~1, ~0], [~0, ~1, 9]), steps, strict=True)
    ]
    assert [after.best() for after in afters[1:] if after.best is not None] == expected[1:]
    model.step([7], [Span(pages[0], 32, 1)])


def test_all_graphs_are_made_at_the_start_the_largest_first(model: Model) -> None:
    assert model.captured._graphs is not None
    sizes = model.captured._graphs.sizes()
    assert model.recorder.num_recorded == len(sizes)
    assert sizes[0] == GraphSize(MAX_ROWS, MAX_SPANS, False)
    assert sizes[-1] == GraphSize(1, 1, True)
    assert len(sizes) < 24


def test_numbers_are_not_overwritten_before_they_have_left(model: Model) -> None:
    pages = model.tables(30)
    model.step([1], [Span(pages, 0, 1)])
    before = model.recorder.num_waited
    model.step([2], [Span(pages, 1, 1)])
    assert model.recorder.num_waited == before + 2  # and for its tokens


def test_steps_that_graphs_do_not_serve(model: Model) -> None:
    graphs, kv = model.captured._graphs, model.kvs[1]
    assert graphs is not None
    one = Span(model.tables(0), 0, 1)
    assert graphs.serves(kv, [one] * MAX_SPANS)
    assert not graphs.serves(kv, [one] * (MAX_SPANS + 1))
    assert not graphs.serves(model.kvs[0], [one])
    assert not graphs.serves(kv, [Span(model.tables(0), LONGEST, 1)])
    assert graphs.serves(kv, [Span(model.tables(0), 0, LONGEST)])
    assert not graphs.serves(kv, [one, *[Span(model.tables(0), 0, LONGEST)] * 2])


def test_attention_that_needs_the_host_gets_graphs_of_decode_steps_only() -> None:
    def step(batch: Batch, token_ids: Tensor) -> GraphOutput:
        assert len(token_ids) == len(batch.spans)
        return GraphOutput(torch.zeros(len(token_ids), 1), torch.zeros(len(token_ids), 1), torch.zeros(len(token_ids)))

    kv = Model("llama").kvs[0]
    graphs = StepGraphs(step, kv, LONGEST, MAX_BATCH, False, DEVICE, Rerun())
    assert all(size.is_decode for size in graphs.sizes())
    assert graphs.serves(kv, [Span([[0]], 0, 1)])
    assert not graphs.serves(kv, [Span([[0]], 0, 2)])


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (17, 24), (64, 64)])
def test_decode_steps_come_in_few_sizes(count: int, rows: int) -> None:
    assert padded(count) == rows


def test_ragged_steps_come_in_few_sizes_and_a_quarter_is_padding_at_most() -> None:
    sizes = {padded_rows(count) for count in range(1, MAX_ROWS + 1)}
    assert len(sizes) <= 14
    assert max(sizes) == MAX_ROWS
    assert all(padded_rows(count) >= count for count in range(1, MAX_ROWS + 1))
    assert all(padded_rows(count) * 3 <= count * 4 + 3 for count in range(192, MAX_ROWS + 1))
