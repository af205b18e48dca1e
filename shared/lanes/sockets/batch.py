"""The wire form of a batch: a header, the records of its entries, then their payloads; and what became of it."""

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from shared.errors import BadRequest, CorruptFrame
from shared.ids import BlockKey
from shared.kv.codec import Payload
from shared.kv.entries import BlockEntries
from shared.kv.frame import MAX_RAW_BYTES, Frame
from shared.kv.payloads.received import BatchHead
from shared.lanes.records import RECORD_BYTES, EntryRecord, pack_records, unpack_records

MAX_ENTRIES = 4096
MAX_BATCH_BYTES = 2 * MAX_RAW_BYTES

_MAGIC = b"PfB1"
_START = struct.Struct("<4sIQQ")  # magic, entries, stream, payload bytes
_DIGEST = struct.Struct("<Q")  # XXH3-64 of the records, seeded with that of the start
HEADER_BYTES = _START.size + _DIGEST.size


def new_head() -> BatchHead:
    """Return where the beginnings of a connection's batches come to lie."""
    return BatchHead(_MAGIC, HEADER_BYTES, RECORD_BYTES, MAX_ENTRIES)


class BatchHeader(NamedTuple):
    """What a batch says of itself before its records; no number in it is impossible."""

    stream: int
    num_entries: int
    num_bytes: int  # of all payloads
    seed: int  # XXH3-64 of the header without its digest
    digest: int  # of the records, with that seed


class Received(NamedTuple):
    """A batch that has arrived. Who takes it owns the slots of its payloads: `keep` or `free` for each."""

    frames: list[Frame]  # verified where the link's options say so
    corrupt: list[BlockEntries]  # arrived, but are not what their source sealed: no slot is held
    lost: list[BlockEntries]  # came when there was no slot for them: to be asked for again, or given up
    busy_s: float = 0.0  # in which any connection of the link was receiving payloads, since the batch that came before

    @property
    def num_entries(self) -> int:
        """All that the batch held."""
        return len(self.frames) + sum(layers.bit_count() for _, layers in (*self.corrupt, *self.lost))


def pack_batch(stream: int, frames: Sequence[Frame]) -> list[Payload]:
    """Return the parts of a batch in the order in which they are sent; payloads are not copied.

    Raises `BadRequest` when it is more than one batch may hold, or an entry has no bytes.
    """
    sizes = [len(frame.payload) for frame in frames]
    num_bytes = sum(sizes)
    if not 0 < len(frames) <= MAX_ENTRIES or not all(sizes) or num_bytes > MAX_BATCH_BYTES:
        raise BadRequest(f"{len(frames)} entries of {num_bytes} bytes make no batch")
    records = pack_records(frames)
    start = _START.pack(_MAGIC, len(frames), stream, num_bytes)
    head = start + _DIGEST.pack(xxh3_64_intdigest(records, xxh3_64_intdigest(start))) + records
    return [head, *(frame.payload for frame in frames)]


def unpack_header(data: Payload) -> BatchHeader:
    """Undo the first `HEADER_BYTES` of `pack_batch`. Raises `CorruptFrame` when they cannot be such."""
    start = bytes(data[: _START.size])
    magic, num_entries, stream, num_bytes = _START.unpack(start)
    if magic != _MAGIC or not 0 < num_entries <= MAX_ENTRIES or not 0 < num_bytes <= MAX_BATCH_BYTES:
        raise CorruptFrame(f"no header of a batch: {num_entries} entries of {num_bytes} bytes")
    (digest,) = _DIGEST.unpack_from(data, _START.size)
    return BatchHeader(stream, num_entries, num_bytes, xxh3_64_intdigest(start), digest)


def unpack_announced(header: BatchHeader, data: Payload) -> list[EntryRecord]:
    """Return the records that follow a header: `num_entries * RECORD_BYTES`. Raises `CorruptFrame` if they do not."""
    if len(data) != header.num_entries * RECORD_BYTES or xxh3_64_intdigest(data, header.seed) != header.digest:
        raise CorruptFrame("the records of a batch are not those that were sent")
    records = unpack_records(data)
    if (announced := sum(record.num_bytes for record in records)) != header.num_bytes:
        raise CorruptFrame(f"the records of a batch announce {announced} bytes, its header {header.num_bytes}")
    return records


def frames_of(records: Sequence[EntryRecord], payloads: Sequence[Payload]) -> list[Frame]:
    """Return the frames of parallel records and payloads."""
    new = tuple.__new__
    return [
        new(Frame, (key, layer, codec, fidelity, raw_bytes, payload, checksum))
        for (key, checksum, _, _, raw_bytes, layer, codec, fidelity), payload in zip(records, payloads, strict=True)
    ]


def entries_of(records: Iterable[EntryRecord | Frame]) -> list[BlockEntries]:
    """Return the entries that records or frames stand for, one item for each block, in order of appearance."""
    layers: dict[BlockKey, int] = {}
    for record in records:
        layers[record.key] = layers.get(record.key, 0) | 1 << record.layer
    return [BlockEntries(key, mask) for key, mask in layers.items()]
