"""The hash chain: equal prefixes, equal keys; anything else differs."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from shared.ids import LayoutHash, ModelFingerprint
from shared.kv.codec import Fidelity
from shared.kv.hashing import chain_keys, num_prefix_blocks, root_key

ROOT = root_key(ModelFingerprint("f"), LayoutHash("l"))


def test_a_key_is_the_hash_of_its_parent_and_its_tokens() -> None:
    tokens = [7, 1 << 16, 0, 4_000_000_000]
    first, second = chain_keys(ROOT, tokens, 2)
    assert first == hashlib.sha256(ROOT + b"\x07\0\0\0" + b"\0\0\x01\0").digest()
    assert second == hashlib.sha256(first + b"\0\0\0\0" + (4_000_000_000).to_bytes(4, "little")).digest()


def test_roots_differ_by_every_part() -> None:
    f, layout = ModelFingerprint("ab"), LayoutHash("c")
    roots = {root_key(f, layout), root_key(f, layout, "salt"), root_key(ModelFingerprint("a"), LayoutHash("bc"))}
    roots |= {root_key(f, layout, fidelity=lossy) for lossy in (Fidelity.INT8, Fidelity.INT4)}
    assert len(roots) == 5
    assert root_key(f, layout, fidelity=Fidelity.LOSSLESS) == root_key(f, layout)


@given(st.lists(st.integers(0, 1000), max_size=40), st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 8))
def test_keys_agree_exactly_as_far_as_the_tokens_do(a: list[int], b: list[int], block: int) -> None:
    keys_a, keys_b = chain_keys(ROOT, a, block), chain_keys(ROOT, b, block)
    assert len(keys_a) == len(a) // block
    for i, (key_a, key_b) in enumerate(zip(keys_a, keys_b, strict=False)):
        assert (key_a == key_b) == (a[: (i + 1) * block] == b[: (i + 1) * block])


def test_the_last_token_is_never_cached() -> None:
    assert [num_prefix_blocks(n, 64) for n in (0, 1, 64, 65, 128, 129)] == [0, 0, 0, 1, 1, 2]
