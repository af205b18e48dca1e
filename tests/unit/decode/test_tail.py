"""How far a tail may advance: gates, budget, chunks."""

import pytest

from services.decode.tail import Tail

LAYERS = 30


@pytest.mark.parametrize(
    ("next_layer", "open_layers", "budget", "expected"),
    [
        (0, 0, 64, 0),  # the first gate is shut
        (0, 3, 64, 3),
        (3, 3, 64, 0),
        (3, 30, 64, 27),
        (0, 30, 16, 15),  # 32 tokens of tail, budget for 16 through all layers
        (29, 30, 1, 1),  # at least one layer, else a small budget would starve it
    ],
)
def test_runnable_layers(next_layer: int, open_layers: int, budget: int, expected: int) -> None:
    tail = Tail(start=64, end=96, chunk_tokens=512, next_layer=next_layer)
    assert tail.num_runnable(open_layers, budget, LAYERS) == expected


def test_a_long_tail_runs_in_chunks() -> None:
    tail = Tail(start=64, end=1000, chunk_tokens=512)
    assert (tail.first, tail.chunk_end) == (64, 576)
    tail.first = tail.chunk_end
    assert tail.chunk_end == 1000
