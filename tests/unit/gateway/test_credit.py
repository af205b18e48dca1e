"""Group masks of whole prefixes agree with the layout's own arithmetic, block by block."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.credit import longest_resume, needed_groups
from shared.kv.layout import KvLayout, LayerSpec

windows = st.lists(st.one_of(st.none(), st.integers(1, 40)), min_size=1, max_size=4)


@given(windows, st.lists(st.integers(0, 15), max_size=30), st.integers(1, 8))
def test_the_longest_resume(specs: list[int | None], masks: list[int], block_tokens: int) -> None:
    layout = KvLayout(tuple(LayerSpec(window, 1, 2) for window in specs), "float32", block_tokens)
    groups = np.array([mask & (1 << len(layout.groups)) - 1 for mask in masks], np.uint32)
    layers = [layout.layers_of_groups(int(mask)) for mask in groups]
    assert longest_resume(layout, groups) == layout.longest_resume(layers)


@given(windows, st.integers(0, 30), st.integers(1, 8))
def test_what_a_resume_needs(specs: list[int | None], num_blocks: int, block_tokens: int) -> None:
    layout = KvLayout(tuple(LayerSpec(window, 1, 2) for window in specs), "float32", block_tokens)
    layers = [layout.layers_of_groups(int(mask)) for mask in needed_groups(layout, num_blocks)]
    assert layers == [layout.needed_layers(block, num_blocks) for block in range(num_blocks)]
