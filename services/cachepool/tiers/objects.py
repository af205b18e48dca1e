"""The form of a stored block: one object, a header that names the place of each layer, then the payloads. Pure.

```
offset  size
0       8     magic
8       2     version
10      2     number of entries
12      4     header bytes, this prefix and the checksum included
16      8     total bytes of the object
24      32    key of the block
56      32    key of the block before it, zeros when that is not known
88      32    hash of the KV layout
120     ...   the KV layout: block_tokens, dtype, kinds of layers, kind of each layer
...     20 n  entries in layer order: layer, codec, fidelity, raw_bytes, length, checksum of the frame
...     8     XXH3-64 of all before it
...     ...   payloads in the same order, without gaps
```

All integers are little-endian. An object describes itself: nothing else is needed to serve from it after a restart.
Header checksum and total size tell a torn object; a payload is told by its frame's own checksum, made at the source.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import xxhash

from shared.errors import BadRequest, CorruptFrame
from shared.ids import BlockKey
from shared.kv.codec import Codec, Fidelity, Payload
from shared.kv.frame import Frame, verify
from shared.kv.hashing import KEY_BYTES
from shared.kv.layout import ITEM_BYTES, MAX_LAYERS, KvLayout, LayerSpec

MAGIC, VERSION = b"PRFKVOBJ", 2  # 1: frames with another checksum
HEAD_BYTES = 4096
"""What is read of an object at first: the whole header of a block of up to some 170 layers."""

MAX_HEADER_BYTES = 64 * 1024

_PREFIX = struct.Struct("<8sHHIQ32s32s32s")
_LAYOUT = struct.Struct("<IBHH")  # block_tokens, dtype, number of kinds, number of layers
_KIND = struct.Struct("<III")  # window (0: none), num_kv_heads, head_dim
_ENTRY = struct.Struct("<HBBIIQ")  # layer, codec, fidelity, raw_bytes, length, checksum
_CHECKSUM = struct.Struct("<Q")
_DTYPES = tuple(sorted(ITEM_BYTES))
_NO_PARENT = bytes(KEY_BYTES)


class ObjectEntry(NamedTuple):
    """One entry of an object: its frame without the payload, and where that lies."""

    layer: int
    codec: Codec
    fidelity: Fidelity
    raw_bytes: int
    checksum: int
    offset: int
    length: int


@dataclass(frozen=True)
class ObjectHeader:
    """What an object holds. `raw` is the header as it is stored, from which `parse` gives this again."""

    key: BlockKey
    parent: BlockKey | None
    layout: KvLayout
    entries: tuple[ObjectEntry, ...]  # ascending by layer
    total_bytes: int
    raw: bytes

    @property
    def layers(self) -> int:
        """The layers held, as a bitmask."""
        return sum(1 << entry.layer for entry in self.entries)


def frame_at(key: BlockKey, entry: ObjectEntry, payload: Payload) -> Frame:
    """Return the frame that was sealed at the source; `verify` tells whether the payload is still the same."""
    return Frame(key, entry.layer, entry.codec, entry.fidelity, entry.raw_bytes, payload, entry.checksum)


def pack(key: BlockKey, parent: BlockKey | None, layout: KvLayout, frames: Iterable[Frame]) -> ObjectHeader:
    """Return the header of an object of these frames; their payloads follow it in layer order.

    Raises `CorruptFrame` when a frame is not what its source sealed: such a one is never written. Hashes all payloads:
    not for the event loop.
    """
    entries, sizes = [], []
    for frame in sorted(frames, key=lambda frame: frame.layer):
        verify(frame)
        size = len(frame.payload)
        entries.append(_ENTRY.pack(frame.layer, frame.codec, frame.fidelity, frame.raw_bytes, size, frame.checksum))
        sizes.append(size)
    body = _pack_layout(layout) + b"".join(entries)
    header_bytes = _PREFIX.size + len(body) + _CHECKSUM.size
    total_bytes = header_bytes + sum(sizes)
    prefix = _PREFIX.pack(
        *(MAGIC, VERSION, len(entries), header_bytes, total_bytes),
        *(key, parent or _NO_PARENT, bytes.fromhex(layout.hash)),
    )
    checksum = _CHECKSUM.pack(xxhash.xxh3_64_intdigest(prefix + body))
    return parse(prefix + body + checksum, total_bytes)


def header_size(data: bytes) -> int:
    """Return the bytes of the header that `data` begins with. Raises `CorruptFrame` when it is none of ours."""
    if len(data) < _PREFIX.size or not data.startswith(MAGIC):
        raise CorruptFrame("not an object of a pool")
    _, version, _, header_bytes, *_ = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise CorruptFrame(f"an object of version {version}; this process reads {VERSION}")
    if not _PREFIX.size + _LAYOUT.size + _CHECKSUM.size <= header_bytes <= MAX_HEADER_BYTES:
        raise CorruptFrame(f"an impossible header of {header_bytes} bytes")
    return int(header_bytes)


def parse(data: bytes, object_bytes: int) -> ObjectHeader:
    """Read the header of an object of `object_bytes` bytes. Raises `CorruptFrame` when it is torn or none of ours."""
    size = header_size(data)
    if len(data) < size:
        raise CorruptFrame(f"{len(data)} bytes of a header of {size}")
    raw = data[:size]
    if xxhash.xxh3_64_intdigest(raw[: -_CHECKSUM.size]) != _CHECKSUM.unpack_from(raw, size - _CHECKSUM.size)[0]:
        raise CorruptFrame("the checksum of an object's header does not match")
    _, _, num_entries, _, total_bytes, key, parent, layout_hash = _PREFIX.unpack_from(raw)
    table = size - _CHECKSUM.size - num_entries * _ENTRY.size
    layout = _parse_layout(raw[_PREFIX.size : table])
    if bytes.fromhex(layout.hash) != layout_hash:
        raise CorruptFrame("the KV layout of an object is not the one that its hash names")
    entries = _parse_entries(raw, table, num_entries)
    if object_bytes != total_bytes or entries[-1].offset + entries[-1].length != total_bytes:
        raise CorruptFrame(f"an object of {object_bytes} bytes, its header says {total_bytes}")
    if entries[-1].layer >= layout.num_layers:
        raise CorruptFrame("an object has layers beyond those of its KV layout")
    return ObjectHeader(BlockKey(key), _parent(parent), layout, entries, total_bytes, raw)


def object_path(key: BlockKey) -> str:
    """Return the name of a block's object: 256 folders keep each one short."""
    name = key.hex()
    return f"{name[:2]}/{name}"


def key_of_path(path: str) -> BlockKey | None:
    """Return the block that an object of this name would be, or None when the name is not one of ours."""
    folder, _, name = path.rpartition("/")
    try:
        key = BlockKey(bytes.fromhex(name))
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES and path == object_path(key) and folder else None


def _parse_entries(raw: bytes, table: int, count: int) -> tuple[ObjectEntry, ...]:
    entries: list[ObjectEntry] = []
    offset = len(raw)
    for layer, codec, fidelity, raw_bytes, length, checksum in _ENTRY.iter_unpack(raw[table : -_CHECKSUM.size]):
        try:
            entry = ObjectEntry(layer, Codec(codec), Fidelity(fidelity), raw_bytes, checksum, offset, length)
        except ValueError as error:  # written by a later version of the codecs
            raise CorruptFrame(f"an entry that this process cannot read: {error}") from error
        if entries and layer <= entries[-1].layer:
            raise CorruptFrame("the entries of an object are out of order")
        entries.append(entry)
        offset += length
    if len(entries) != count or not entries:
        raise CorruptFrame(f"an object with {len(entries)} entries, its header says {count}")
    return tuple(entries)


def _pack_layout(layout: KvLayout) -> bytes:
    kinds = sorted(set(layout.layers), key=layout.layers.index)
    return b"".join(
        (
            _LAYOUT.pack(layout.block_tokens, _DTYPES.index(layout.dtype), len(kinds), layout.num_layers),
            *(_KIND.pack(kind.window or 0, kind.num_kv_heads, kind.head_dim) for kind in kinds),
            struct.pack(f"<{layout.num_layers}H", *map(kinds.index, layout.layers)),
        )
    )


@lru_cache(maxsize=64)
def _parse_layout(data: bytes) -> KvLayout:
    """Cached: the objects of one model share their layout, and its hash is worth computing once."""
    try:
        block_tokens, dtype, num_kinds, num_layers = _LAYOUT.unpack_from(data)
        if num_layers > MAX_LAYERS or len(data) != _LAYOUT.size + num_kinds * _KIND.size + 2 * num_layers:
            raise CorruptFrame("the KV layout of an object has another size than it says")
        fields = [_KIND.unpack_from(data, _LAYOUT.size + i * _KIND.size) for i in range(num_kinds)]
        kinds = [LayerSpec(window or None, heads, dim) for window, heads, dim in fields]
        order: Sequence[int] = struct.unpack_from(f"<{num_layers}H", data, len(data) - 2 * num_layers)
        return KvLayout(tuple(kinds[kind] for kind in order), _DTYPES[dtype], block_tokens)
    except (struct.error, IndexError, BadRequest) as error:
        raise CorruptFrame(f"an impossible KV layout in an object: {error}") from error


def _parent(key: bytes) -> BlockKey | None:
    return None if key == _NO_PARENT else BlockKey(key)
