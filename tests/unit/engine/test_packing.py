"""What of prompts goes into a step: in order, within the budget, nothing twice, nobody for ever last."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.engine.packing import LayerPass, Offer, RowRange, pack

LAYERS = 30


def whole(request: str, num_tokens: int) -> Offer[str]:
    return Offer(request, num_tokens, 0, LAYERS)


def test_row_ranges_fill_a_step_and_the_last_one_is_cut() -> None:
    packed = pack([whole("a", 30), whole("b", 200), whole("c", 5)], 100, LAYERS)
    assert packed.rows == [RowRange("a", 30), RowRange("b", 70)]


@pytest.mark.parametrize(
    ("num_tokens", "next_layer", "open_layers", "end"),
    [
        (16, 0, 29, 29),  # a short tail as far as its gates are open
        (64, 0, 29, 7),  # 480 tokens through one layer
        (64, 2, 3, 3),  # gates
        (512, 4, 29, 5),  # at least one layer
        (16, 29, 30, 30),  # all has landed: what was begun in layers goes on in layers
    ],
)
def test_what_waits_for_layers_is_cut_in_layers(num_tokens: int, next_layer: int, open_layers: int, end: int) -> None:
    packed = pack([Offer("a", num_tokens, next_layer, open_layers)], 16, LAYERS)
    assert (packed.rows, packed.passes) == ([], [LayerPass(next_layer, end, ["a"])])


def test_tails_at_the_same_layer_go_together() -> None:
    offers = [Offer("a", 20, 3, 9), whole("b", 10), Offer("c", 5, 3, 7), Offer("d", 5, 8, 30)]
    packed = pack(offers, 512, LAYERS)
    assert packed.rows == [RowRange("b", 10)]
    assert packed.passes == [LayerPass(3, 7, ["a", "c"]), LayerPass(8, 30, ["d"])]


def test_the_first_goes_on_however_small_the_step_is() -> None:
    assert pack([whole("a", 5)], 0, LAYERS).rows == [RowRange("a", 1)]
    assert pack([Offer("a", 64, 0, 2)], 0, LAYERS).passes == [LayerPass(0, 1, ["a"])]
    assert pack([], 512, LAYERS).rows == []


OFFERS = st.lists(
    st.tuples(st.integers(1, 600), st.integers(0, LAYERS - 1), st.integers(1, LAYERS)).filter(lambda o: o[1] < o[2]),
    max_size=20,
)


@given(OFFERS, st.integers(1, 600))
def test_a_step_keeps_to_its_budget_and_to_the_order(shapes: list[Any], num_tokens: int) -> None:
    offers = [Offer(number, *shape) for number, shape in enumerate(shapes)]
    packed = pack(offers, num_tokens, LAYERS)
    done = {number: taken * LAYERS for number, taken in packed.rows}
    for first, end, requests in packed.passes:
        for number in requests:
            assert offers[number].next_layer == first < end <= offers[number].open_layers
            done[number] = (end - first) * offers[number].num_tokens
    for number, taken in packed.rows:
        assert (offers[number].next_layer, offers[number].open_layers) == (0, LAYERS)
        assert 0 < taken <= offers[number].num_tokens
    assert sorted(done) == list(range(len(done))), "who comes first goes first"
    assert bool(done) == bool(offers)
    least = offers[0].num_tokens if packed.passes and len(done) == 1 else 0  # one layer of the first
    assert sum(done.values()) <= max(num_tokens * LAYERS, least)
