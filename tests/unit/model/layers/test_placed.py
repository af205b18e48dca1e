"""Numbers of a step that are placed at once are those that are made one by one."""

import pytest
import torch

from shared.model.layers.batch import Batch, Span
from shared.model.layers.placed import place

PAGE = 8
SPANS = [
    Span([[4, 0, 2], [-1, 3, 1]], 9, 12),
    Span([[7], [5]], 3, 1),
    Span([[8, 6, 9, 11], [10, 12, 13, 14]], 31, 1, stores=False),
    Span([[15, 16], [17, 18]], 0, 16),
]


@pytest.mark.parametrize("spans", [SPANS, SPANS[:1], SPANS[1:3]])
def test_both_ways_agree(spans: list[Span]) -> None:
    ids = list(range(100, 100 + sum(span.num_tokens for span in spans)))
    plain = Batch.build(spans, PAGE, token_ids=ids)
    longest = max(span.num_tokens for span in spans)
    placed = Batch.of_numbers(spans, PAGE, place(ids, spans, PAGE, torch.device("cpu")), longest)
    assert placed.token_ids.tolist() == plain.token_ids.tolist() == ids
    assert placed.is_decode == plain.is_decode
    assert placed.num_tokens == plain.num_tokens
    for ours, theirs in (
        (placed.positions, plain.positions),
        (placed.lengths, plain.lengths),
        (placed.query_starts, plain.query_starts),
        *((placed.slots_of(group), plain.slots_of(group)) for group in range(2)),
        *((placed.block_table(group), plain.block_table(group)) for group in range(2)),
    ):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
