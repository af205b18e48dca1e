"""The memory behind pages: shapes, sharing between groups, and mapping ahead."""

from functools import cached_property

import pytest
import torch

from shared.kv.layout import EntryPart, EntryShape, KvLayout, LayerSpec
from shared.model.pages.groups import PageGroups
from shared.model.pages.tensors import PageTensors

CPU = torch.device("cpu")
MIXED = KvLayout((LayerSpec(None, 2, 8), LayerSpec(8, 2, 8)), "float32", block_tokens=4)


class OfParts(KvLayout):
    """A layout whose layers keep other parts than K and V."""

    parts: tuple[EntryPart, ...] = (EntryPart("latent", 1, 8),)

    @cached_property
    def entry_shapes(self) -> tuple[EntryShape, ...]:
        return (EntryShape(self.block_tokens, self.parts, self.dtype),) * self.num_layers


class Uneven(OfParts):
    parts = (EntryPart("latent", 1, 8), EntryPart("rope", 1, 2))


def tensors(layout: KvLayout, num_pages: int = 3) -> PageTensors:
    return PageTensors(layout, PageGroups.of(layout), num_pages, 8, CPU)


def test_layers_of_different_groups_share_memory_page_by_page() -> None:
    made = tensors(MIXED)
    assert made.of(0).shape == (2, 3, 8, 2, 8)
    assert made.of(0).data_ptr() == made.of(1).data_ptr()
    assert not made.of(0).any()


def test_layers_of_one_group_do_not() -> None:
    made = tensors(KvLayout((LayerSpec(None, 2, 8),) * 2, "bfloat16", block_tokens=4))
    made.of(0).fill_(1)
    assert not made.of(1).any()


def test_there_is_a_row_for_each_part_of_an_entry() -> None:
    layout = OfParts((LayerSpec(None, 1, 8),), "float32", 4)
    assert tensors(layout).of(0).shape == (1, 3, 8, 1, 8)
    assert PageGroups.of(layout).page_bytes(layout, 8) == 8 * 8 * 4
    with pytest.raises(ValueError, match="equal parts"):
        tensors(Uneven((LayerSpec(None, 1, 8),), "float32", 4))


def test_mapping_ahead_changes_nothing() -> None:
    made = tensors(MIXED)
    made.of(0).fill_(5)
    made.populate(1, 3)
    assert made.of(0).eq(5).all()
