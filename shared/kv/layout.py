"""The shape of a model's KV cache: which layers need which blocks, and how many bytes an entry has. No torch."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

from shared.errors import BadRequest
from shared.ids import LayoutHash

Dtype = Literal["float32", "bfloat16", "float16"]
ITEM_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
MAX_LAYERS = 512


class LayerSpec(NamedTuple):
    """One layer's attention as far as its KV cache is concerned."""

    window: int | None  # None: full attention; W: position q attends to (q - W, q]
    num_kv_heads: int
    head_dim: int


class EntryPart(NamedTuple):
    """One kind of numbers that a layer keeps of each token, `[num_heads, head_dim]`."""

    name: str  # what codecs know it by: "K", "V"
    num_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """Numbers of one token."""
        return self.num_heads * self.head_dim


@dataclass(frozen=True)
class EntryShape:
    """What one entry consists of: its parts in their order, each `[block_tokens, num_heads, head_dim]` of `dtype`.

    All arithmetic on entries goes through the parts: KV that is not K and V, as a latent vector, has others.
    """

    block_tokens: int
    parts: tuple[EntryPart, ...]
    dtype: Dtype

    @classmethod
    def of_kv(cls, block_tokens: int, num_kv_heads: int, head_dim: int, dtype: Dtype) -> "EntryShape":
        """Return the shape of attention that keeps K and V."""
        return cls(block_tokens, tuple(EntryPart(name, num_kv_heads, head_dim) for name in ("K", "V")), dtype)

    @cached_property
    def is_kv(self) -> bool:
        """Whether the entry is K and V of the same heads, which lossy codecs know how to round."""
        return [part.name for part in self.parts] == ["K", "V"] and self.parts[0][1:] == self.parts[1][1:]

    @cached_property
    def num_bytes(self) -> int:
        return self.tokens_bytes(self.block_tokens)

    def tokens_bytes(self, num_tokens: int) -> int:
        """Return the bytes of so many tokens, over all parts."""
        return num_tokens * sum(part.width for part in self.parts) * ITEM_BYTES[self.dtype]

    def slices(self, num_tokens: int) -> list[slice]:
        """Return where an entry has the first `num_tokens` tokens of each part, in bytes."""
        found, start = [], 0
        for part in self.parts:
            row_bytes = part.width * ITEM_BYTES[self.dtype]
            found.append(slice(start, start + num_tokens * row_bytes))
            start += self.block_tokens * row_bytes
        return found


class GroupSpec(NamedTuple):
    """The layers that share a window, and so need the same blocks."""

    window: int | None
    layers: int  # bitmask: bit i is layer i


@dataclass(frozen=True)
class KvLayout:
    """Pure arithmetic on a model's KV cache. Two layouts with one hash have byte-compatible entries.

    An *entry* is one (block, layer), of the layer's `EntryShape`, in C order.
    Sets of layers are integers used as bitmasks, bit i for layer i.

    Raises `BadRequest` at construction when a field is out of range (a layout can arrive over the wire).
    """

    layers: tuple[LayerSpec, ...]
    dtype: Dtype
    block_tokens: int = 64

    def __post_init__(self) -> None:
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise BadRequest(f"a KV layout has 1 to {MAX_LAYERS} layers, not {len(self.layers)}")
        if self.dtype not in get_args(Dtype):
            raise BadRequest(f"unknown KV dtype {self.dtype!r}")
        if self.block_tokens < 1:
            raise BadRequest("block_tokens must be at least 1")
        for spec in self.layers:
            if spec.num_kv_heads < 1 or spec.head_dim < 1 or (spec.window is not None and spec.window < 1):
                raise BadRequest(f"impossible layer in KV layout: {spec}")

    @cached_property
    def hash(self) -> LayoutHash:
        text = json.dumps([self.layers, self.dtype, self.block_tokens], separators=(",", ":"))
        return LayoutHash(hashlib.sha256(text.encode()).hexdigest())

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def all_layers(self) -> int:
        return (1 << self.num_layers) - 1

    @cached_property
    def groups(self) -> tuple[GroupSpec, ...]:
        """Layer groups in the order in which they first appear; group g is bit g of a group mask."""
        masks: dict[int | None, int] = {}
        for index, spec in enumerate(self.layers):
            masks[spec.window] = masks.get(spec.window, 0) | 1 << index
        return tuple(GroupSpec(window, mask) for window, mask in masks.items())

    @cached_property
    def group_layers(self) -> tuple[int, ...]:
        """For each layer all layers of its group, as a bitmask."""
        masks = {group.window: group.layers for group in self.groups}
        return tuple(masks[spec.window] for spec in self.layers)

    @cached_property
    def window_layers(self) -> int:
        """The layers that attend to a window only, as a bitmask."""
        return sum(group.layers for group in self.groups if group.window is not None)

    @cached_property
    def entry_shapes(self) -> tuple[EntryShape, ...]:
        """For each layer the shape of one block's entry: K and V."""
        shapes = {
            spec: EntryShape.of_kv(self.block_tokens, spec.num_kv_heads, spec.head_dim, self.dtype)
            for spec in self.layers
        }
        return tuple(shapes[spec] for spec in self.layers)

    def entry_shape(self, layer: int) -> EntryShape:
        """Return the shape of one block's entry in `layer`. Raises `IndexError` for a layer that is not there."""
        return self.entry_shapes[layer]

    @cached_property
    def _entry_sizes(self) -> tuple[int, ...]:
        return tuple(shape.num_bytes for shape in self.entry_shapes)

    def entry_bytes(self, layer: int) -> int:
        """Return the bytes of one block's entry in `layer`. Raises `IndexError` for a layer that is not there."""
        return self._entry_sizes[layer]

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers."""
        return sum(self.entry_bytes(layer) for layer in range(self.num_layers))

    @cached_property
    def group_bytes(self) -> tuple[int, ...]:
        """For each group the bytes of one block's entries in its layers."""
        return tuple(self.mask_bytes(group.layers) for group in self.groups)

    def mask_bytes(self, layers: int) -> int:
        """Bytes of one block's entries in the layers of a bitmask."""
        if layers == self.all_layers:
            return self.block_bytes
        return sum(self.entry_bytes(layer) for layer in iter_layers(layers))

    def first_block_needed(self, window: int | None, num_blocks: int) -> int:
        """Return the first block that a resume after `num_blocks` blocks needs in a group with this window.

        The next position is `p = num_blocks * block_tokens` and attends to `(p - W, p]`.
        """
        return min(num_blocks, self._first_block_seen(window, num_blocks * self.block_tokens))

    def resume_bytes(self, first: int, end: int) -> int:
        """Return the bytes that a resume after `end` blocks needs of the blocks `[first, end)`."""
        total = 0
        for group, num_bytes in zip(self.groups, self.group_bytes, strict=True):
            total += num_bytes * max(0, end - max(first, self.first_block_needed(group.window, end)))
        return total

    def needed_layers(self, block: int, num_blocks: int) -> int:
        """Return the layers whose entry of `block` a resume after `num_blocks` blocks needs, as a bitmask."""
        return self.needed_layers_at(block, num_blocks * self.block_tokens)

    def needed_layers_at(self, block: int, position: int) -> int:
        """Return the layers whose entry of `block` a query at `position` needs, if all before it is cached.

        `position` may lie inside a block, whose earlier tokens are needed then: a prompt of whole blocks that are all
        cached is resumed at its last token.
        """
        start, end = block * self.block_tokens, min((block + 1) * self.block_tokens, position)
        seen = [0 if g.window is None else position - g.window + 1 for g in self.groups]
        return sum(g.layers for g, first in zip(self.groups, seen, strict=True) if max(start, first) < end)

    def longest_resume(self, held: Sequence[int], latest: int | None = None) -> int:
        """Return the largest k such that blocks holding the layers `held[0..k-1]` allow a resume after k blocks.

        Where k blocks reach beyond the token `latest`, the resume is at that token, and what it sees must be held.
        O(len(held) * groups): tracks, per group, the run of blocks that ends at k and holds the whole group.
        """
        best = 0
        runs = [0] * len(self.groups)
        for k, mask in enumerate(held, start=1):
            usable = True
            position = k * self.block_tokens if latest is None else min(k * self.block_tokens, latest)
            for g, group in enumerate(self.groups):
                runs[g] = runs[g] + 1 if mask & group.layers == group.layers else 0
                usable = usable and runs[g] >= k - self._first_block_seen(group.window, position)
            if usable:
                best = k
        return best

    def _first_block_seen(self, window: int | None, position: int) -> int:
        return 0 if window is None else max(0, position - window + 1) // self.block_tokens

    def group_mask(self, layers: int) -> int:
        """Return the groups that `layers` covers wholly, bit g for group g."""
        mask = 0
        for g, group in enumerate(self.groups):
            if layers & group.layers == group.layers:
                mask |= 1 << g
        return mask


def iter_layers(mask: int) -> list[int]:
    """Return the layer numbers in a bitmask, ascending."""
    layers = []
    while mask:
        low = mask & -mask
        layers.append(low.bit_length() - 1)
        mask ^= low
    return layers
