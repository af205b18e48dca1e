"""Numbers of a step are what they say of each token, one by one."""

import pytest

from shared.model.layers.batch import Batch, Span

PAGE = 8
SPANS = [
    Span([[4, 0, 2], [-1, 3, 1]], 9, 12),
    Span([[7], [5]], 3, 1),
    Span([[8, 6, 9, 11], [10, 12, 13, 14]], 31, 1, stores=False),
    Span([[15, 16], [17, 18]], 0, 16),
]


@pytest.mark.parametrize("spans", [SPANS, SPANS[:1], SPANS[1:3]])
def test_each_token_has_its_place(spans: list[Span]) -> None:
    ids = list(range(100, 100 + sum(span.num_tokens for span in spans)))
    batch = Batch.build(spans, PAGE, token_ids=ids)
    tokens = [(span, position) for span in spans for position in range(span.start, span.end)]
    assert batch.token_ids.tolist() == ids
    assert batch.positions.tolist() == [position for _, position in tokens]
    assert batch.lengths.tolist() == [span.end for span in spans]
    assert batch.query_starts.tolist() == [sum(s.num_tokens for s in spans[:i]) for i in range(len(spans) + 1)]
    assert batch.is_decode == (len(ids) == len(spans))
    for group in range(2):
        slots = [s.tables[group][at // PAGE] * PAGE + at % PAGE if s.stores else -1 for s, at in tokens]
        assert batch.slots_of(group).tolist() == slots
        held = [list(span.tables[group][: -(-span.end // PAGE)]) for span in spans]
        widest = max(map(len, held))
        assert batch.block_table(group).tolist() == [[*pages, *[-1] * (widest - len(pages))] for pages in held]
