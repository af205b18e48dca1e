"""Resume arithmetic on arrays is the layout's own, block by block."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shared.kv.layout import KvLayout, LayerSpec
from shared.kv.resume import longest_resume, needed_groups, no_groups

windows = st.one_of(st.none(), st.integers(1, 30))
layouts = st.builds(
    lambda windows, block_tokens: KvLayout(tuple(LayerSpec(w, 1, 2) for w in windows), "float32", block_tokens),
    st.lists(windows, min_size=1, max_size=9),
    st.integers(1, 8),
)


def layers_of(layout: KvLayout, groups: int) -> int:
    """Return the layers of the groups in a mask: the inverse of `KvLayout.group_mask`."""
    return sum(group.layers for g, group in enumerate(layout.groups) if groups >> g & 1)


@given(layouts, st.data())
def test_longest_resume_is_the_layouts(layout: KvLayout, data: st.DataObject) -> None:
    num_blocks = data.draw(st.integers(0, 12))
    # Mostly whole blocks: otherwise hardly a chain gets anywhere.
    mask = st.one_of(st.just((1 << len(layout.groups)) - 1), st.integers(0, (1 << len(layout.groups)) - 1))
    rows = data.draw(st.lists(st.lists(mask, min_size=num_blocks, max_size=num_blocks), min_size=1, max_size=4))
    masks = no_groups(layout, len(rows), num_blocks)
    masks[:] = rows
    expected = [layout.longest_resume([layers_of(layout, groups) for groups in row]) for row in rows]
    assert longest_resume(layout, masks).tolist() == expected
    assert [int(longest_resume(layout, row)) for row in masks] == expected


@given(layouts, st.integers(0, 12))
def test_needed_groups_are_the_layouts(layout: KvLayout, num_blocks: int) -> None:
    expected = [layout.group_mask(layout.needed_layers(block, num_blocks)) for block in range(num_blocks)]
    assert needed_groups(layout, num_blocks).tolist() == expected


def test_masks_have_a_bit_for_each_group() -> None:
    def layout(num_groups: int) -> KvLayout:
        return KvLayout(tuple(LayerSpec(window, 1, 2) for window in range(1, num_groups + 1)), "float32")

    assert [no_groups(layout(n), 1).dtype for n in (1, 8, 9, 32)] == [np.uint8, np.uint8, np.uint16, np.uint32]
