"""What is handed over: chains of blocks whose entries have a certain size."""

import hashlib
from collections.abc import Mapping

from shared.ids import BlockKey
from shared.kv.entries import BlockEntries
from shared.kv.layout import KvLayout, LayerSpec

KIB, MIB = 1 << 10, 1 << 20

SHAPES: Mapping[int, tuple[int, int, int]] = {
    48 * KIB: (30, 3, 64),  # SmolLM2-135M
    64 * KIB: (18, 1, 256),  # Gemma 3 270M
    256 * KIB: (32, 8, 128),  # Llama 3 8B
    MIB: (8, 32, 128),  # entries of Llama 2 7B
}
"""Layers, KV heads and head size by the bytes of an entry, in bfloat16 and blocks of 64 tokens."""


def layout_of(entry_bytes: int) -> KvLayout:
    """Return the layout whose entries have so many bytes, which `SHAPES` must know."""
    num_layers, num_heads, head_dim = SHAPES[entry_bytes]
    return KvLayout((LayerSpec(None, num_heads, head_dim),) * num_layers, "bfloat16")


def keys_of(name: str, num_blocks: int) -> list[BlockKey]:
    """Return the keys of a prompt: another name is another prompt."""
    return [BlockKey(hashlib.sha256(f"{name} {block}".encode()).digest()) for block in range(num_blocks)]


def chain_of(name: str, num_blocks: int, layout: KvLayout) -> list[BlockEntries]:
    return [BlockEntries(key, layout.all_layers) for key in keys_of(name, num_blocks)]
