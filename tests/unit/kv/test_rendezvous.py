"""Rendezvous hashing: the same answer everywhere, even shares, and nothing moves that need not."""

import hashlib
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ids import BlockKey
from shared.kv.rendezvous import heads_of, owned, owner, owner_indices, partition


def keys(num_keys: int, name: str = "") -> list[BlockKey]:
    return [BlockKey(hashlib.sha256(f"{name}{number}".encode()).digest()) for number in range(num_keys)]


NODES = [f"cachepool-{number}:7102" for number in range(8)]


def owners(wanted: list[BlockKey], nodes: list[str]) -> list[str]:
    return [nodes[index] for index in owner_indices(wanted, nodes)]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (["a:1", "b:2", "c:3"], "ccbaaaaabacc"),
        (["a:1", "b:2"], "abbaaaaababb"),
        (["a:1"], "aaaaaaaaaaaa"),
    ],
)
def test_vectors(nodes: list[str], expected: str) -> None:
    """Part of the wire contract: a process of another version must look where this one has stored."""
    assert "".join(owner(key, nodes)[0] for key in keys(12)) == expected
    assert "".join(node[0] for node in owners(keys(12), nodes)) == expected


@given(st.integers(0, 40), st.sets(st.text(max_size=8), min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_neither_the_form_nor_the_order_of_nodes_matters(num_keys: int, names: set[str], rng: random.Random) -> None:
    nodes = sorted(names)
    one_by_one = [owner(key, nodes) for key in keys(num_keys)]
    rng.shuffle(nodes)
    assert owners(keys(num_keys), nodes) == one_by_one
    shares = partition(keys(num_keys), nodes)
    assert sorted(position for share in shares.values() for position in share) == list(range(num_keys))
    assert all(owner(keys(num_keys)[position], nodes) == node for node, share in shares.items() for position in share)


@pytest.mark.parametrize("num_nodes", [2, 3, 8])
def test_shares_are_even(num_nodes: int) -> None:
    counts = np.bincount(owner_indices(keys(24_000), NODES[:num_nodes]), minlength=num_nodes)
    expected = 24_000 / num_nodes
    # Chi-squared with num_nodes - 1 degrees of freedom; 30 is beyond the 99.9th percentile of 7.
    assert ((counts - expected) ** 2 / expected).sum() < 30


def test_a_node_that_leaves_moves_its_own_keys_only_and_to_all_others() -> None:
    everything = keys(8000)
    before = owners(everything, NODES)
    gone = NODES[3]
    after = owners(everything, [node for node in NODES if node != gone])
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(moved) == before.count(gone)
    assert all(moved.count(node) > 0.6 * len(moved) / 7 for node in NODES if node != gone)


def test_a_node_that_joins_takes_its_share_and_nothing_moves_between_others() -> None:
    everything = keys(8000)
    before, after = owners(everything, NODES[:7]), owners(everything, NODES)
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(changed) == {NODES[7]}
    assert 0.8 * 1000 < len(changed) < 1.2 * 1000


@pytest.mark.parametrize("num_nodes", [1, 2, 5])
def test_each_key_is_owned_by_its_owner_alone(num_nodes: int) -> None:
    wanted, nodes = keys(500), NODES[:num_nodes]
    expected = [[owner(key, nodes) == node for key in wanted] for node in nodes]
    assert owned(heads_of(wanted), nodes).tolist() == expected
