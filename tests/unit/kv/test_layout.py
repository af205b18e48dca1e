"""KV layout arithmetic: group needs, resumes, hashes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadRequest
from shared.kv.layout import EntryPart, EntryShape, KvLayout, LayerSpec, iter_layers

FULL = LayerSpec(None, 3, 64)


def windowed(window: int) -> LayerSpec:
    return LayerSpec(window, 1, 256)


def test_entry_bytes_count_k_and_v_of_a_whole_block() -> None:
    layout = KvLayout((FULL, windowed(512)), "bfloat16")
    assert layout.entry_bytes(0) == 2 * 64 * 3 * 64 * 2
    assert layout.entry_bytes(1) == 2 * 64 * 256 * 2
    assert layout.block_bytes == layout.entry_bytes(0) + layout.entry_bytes(1)


def test_an_entry_is_its_parts_one_after_the_other() -> None:
    layout = KvLayout((FULL, windowed(512), FULL), "bfloat16")
    assert layout.entry_shape(0) is layout.entry_shape(2)
    assert layout.entry_shape(0) == EntryShape(64, (EntryPart("K", 3, 64), EntryPart("V", 3, 64)), "bfloat16")
    with pytest.raises(IndexError):
        layout.entry_shape(3)
    latent = EntryShape(64, (EntryPart("latent", 1, 512), EntryPart("rope", 1, 64)), "bfloat16")
    assert latent.num_bytes == 64 * 576 * 2
    assert latent.tokens_bytes(3) == 3 * 576 * 2
    assert latent.slices(3) == [slice(0, 3 * 512 * 2), slice(64 * 512 * 2, 64 * 512 * 2 + 3 * 64 * 2)]


def test_the_hash_of_a_layout_never_changes() -> None:
    """Pools, workers and objects on disk of different versions share entries by it."""
    layout = KvLayout((FULL, windowed(512)), "bfloat16")
    assert layout.hash == "37b5da50214308a03a38e0cc02fa53b7e531fd0c85d284a4bab173d594a76cca"


def test_hash_depends_on_everything_that_makes_bytes_differ() -> None:
    base = KvLayout((FULL,), "bfloat16")
    others = [
        KvLayout((FULL, FULL), "bfloat16"),
        KvLayout((FULL,), "float32"),
        KvLayout((FULL,), "bfloat16", block_tokens=32),
        KvLayout((FULL._replace(window=64),), "bfloat16"),
    ]
    assert len({base.hash, *(layout.hash for layout in others)}) == 5
    assert base.hash == KvLayout((FULL,), "bfloat16", 64).hash


@pytest.mark.parametrize(
    ("window", "num_blocks", "first"),
    [
        (None, 9, 0),
        (512, 8, 0),  # the next token sees tokens 1..511 of the prefix
        (512, 9, 1),  # tokens 65..575
        (513, 9, 1),  # tokens 64..575
        (514, 9, 0),  # token 63 is seen
        (1, 5, 5),  # a token sees only itself
        (2, 5, 4),
        (64, 0, 0),
    ],
)
def test_first_block_needed(window: int | None, num_blocks: int, first: int) -> None:
    assert KvLayout((FULL,), "float32").first_block_needed(window, num_blocks) == first


def test_needed_layers_leaves_out_inner_window_blocks() -> None:
    layout = KvLayout((FULL, windowed(128), FULL), "float32")
    assert [layout.needed_layers(block, 5) for block in range(6)] == [0b101, 0b101, 0b101, 0b111, 0b111, 0]


@given(st.lists(st.sampled_from([None, 1, 2, 5, 9, 30]), min_size=1, max_size=4), st.integers(1, 8), st.data())
def test_a_resume_needs_every_block_that_its_first_query_sees(
    windows: list[int | None], block_tokens: int, data: st.DataObject
) -> None:
    layout = KvLayout(tuple(LayerSpec(window, 1, 8) for window in windows), "float32", block_tokens)
    position = data.draw(st.integers(0, 12 * block_tokens))
    for block in range(13):
        tokens = range(block * block_tokens, (block + 1) * block_tokens)
        seen = [any(t < position and (w is None or t > position - w) for t in tokens) for w in windows]
        assert layout.needed_layers_at(block, position) == sum(1 << layer for layer, needs in enumerate(seen) if needs)
    num_blocks, rest = divmod(position, block_tokens)
    if not rest:
        firsts = [layout.first_block_needed(window, num_blocks) for window in windows]
        for block in range(13):
            needed = sum(1 << layer for layer, first in enumerate(firsts) if first <= block < num_blocks)
            assert layout.needed_layers(block, num_blocks) == needed


def test_a_resume_counts_only_where_every_group_allows_it() -> None:
    layout = KvLayout((FULL, windowed(128)), "float32")  # a resume at k needs the window of blocks k-2 and k-1
    full, both = 0b01, 0b11
    assert layout.longest_resume([both, both, both]) == 3
    assert layout.longest_resume([full, full, both, both]) == 4
    assert layout.longest_resume([both, full, both]) == 1
    assert layout.longest_resume([both, 0b10, both, both]) == 1
    assert layout.longest_resume([]) == 0


@given(st.lists(st.integers(0, 7), max_size=12), st.integers(1, 400), st.integers(1, 400))
def test_longest_resume_agrees_with_its_definition(held: list[int], w1: int, w2: int) -> None:
    layout = KvLayout((FULL, windowed(w1), windowed(w2)), "float32")

    def allowed(k: int) -> bool:
        return all(layout.needed_layers(b, k) & ~held[b] == 0 for b in range(k))

    # held masks that cover a group partly do not count: with one layer per group, mask and definition agree
    assert layout.longest_resume(held) == max(k for k in range(len(held) + 1) if allowed(k))


@given(st.lists(st.integers(0, 7), min_size=1, max_size=12), st.integers(2, 400), st.integers(2, 400))
def test_a_resume_at_the_last_token_sees_what_is_held(held: list[int], w1: int, w2: int) -> None:
    """Of blocks to the end of a prompt, whose last token is computed in any case."""
    layout, latest = KvLayout((FULL, windowed(w1), windowed(w2)), "float32"), len(held) * 64 - 1

    def allowed(k: int) -> bool:
        position = min(k * 64, latest)
        return all(layout.needed_layers_at(b, position) & ~held[b] == 0 for b in range(k))

    assert layout.longest_resume(held, latest) == max(k for k in range(len(held) + 1) if allowed(k))


@given(st.lists(st.sampled_from([None, 64, 512]), min_size=1, max_size=8), st.integers(0, 255))
def test_group_masks(windows: list[int | None], layers: int) -> None:
    layout = KvLayout(tuple(LayerSpec(w, 1, 8) for w in windows), "float32")
    layers &= layout.all_layers
    covered = layout.group_mask(layers)
    for g, group in enumerate(layout.groups):
        assert covered >> g & 1 == all(layers >> layer & 1 for layer in iter_layers(group.layers))
    assert layout.group_mask(layout.all_layers) == (1 << len(layout.groups)) - 1


def test_iter_layers() -> None:
    assert iter_layers(0b1010_0001) == [0, 5, 7]
    assert iter_layers(0) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: KvLayout((), "float32"),
        lambda: KvLayout((FULL,), "int3"),  # type: ignore[arg-type]
        lambda: KvLayout((FULL,), "float32", block_tokens=0),
        lambda: KvLayout((LayerSpec(0, 1, 8),), "float32"),
        lambda: KvLayout((LayerSpec(None, 0, 8),), "float32"),
    ],
)
def test_impossible_layouts_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadRequest):
        make()


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_bytes_of_a_resume_are_those_of_the_layers_that_it_needs(first: int, more: int) -> None:
    layout = KvLayout((FULL, windowed(100), windowed(512)), "bfloat16")
    end = first + more
    needed = [layout.mask_bytes(layout.needed_layers(block, end)) for block in range(first, end)]
    assert layout.resume_bytes(first, end) == sum(needed)
