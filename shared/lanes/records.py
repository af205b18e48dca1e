"""Entries without their payloads, packed by the hundred: what a lane says about the bytes that it carries."""

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from shared.errors import CorruptFrame
from shared.ids import BlockKey
from shared.kv.codec import Codec, Fidelity, Payload
from shared.kv.frame import MAX_RAW_BYTES, Frame
from shared.kv.layout import MAX_LAYERS

_RECORD = struct.Struct("<32sQQIIHBB4x")  # key, checksum, place, payload bytes, raw bytes, layer, codec, fidelity
RECORD_BYTES = _RECORD.size

_CODECS = {int(codec): codec for codec in Codec}
_FIDELITIES = {int(fidelity): fidelity for fidelity in Fidelity}
NO_PLACE = 0


class EntryRecord(NamedTuple):
    """One entry as a lane announces it; not verified, but no number in it is impossible."""

    key: BlockKey
    checksum: int
    place: int  # offset of the payload in the pool's memory; NO_PLACE where the payload follows on the lane
    num_bytes: int  # of the payload
    raw_bytes: int
    layer: int
    codec: Codec
    fidelity: Fidelity

    def frame(self, payload: Payload) -> Frame:
        """Return the sealed entry whose payload was found."""
        return Frame(self.key, self.layer, self.codec, self.fidelity, self.raw_bytes, payload, self.checksum)


def pack_records(frames: Sequence[Frame], places: Iterable[int] | None = None) -> bytes:
    """Return the records of frames, `RECORD_BYTES` each. `places` are parallel to them; None: payloads follow."""
    pack = _RECORD.pack
    return b"".join(
        [
            pack(key, checksum, place, len(payload), raw_bytes, layer, codec, fidelity)
            for (key, layer, codec, fidelity, raw_bytes, payload, checksum), place in zip(
                frames, places if places is not None else [NO_PLACE] * len(frames), strict=True
            )
        ]
    )


def unpack_records(data: Payload) -> list[EntryRecord]:
    """Undo `pack_records`. Raises `CorruptFrame` unless these are whole records of possible entries."""
    if len(data) % RECORD_BYTES:
        raise CorruptFrame(f"{len(data)} bytes are no whole number of records")
    records = []
    new = tuple.__new__
    for key, checksum, place, num_bytes, raw_bytes, layer, codec, fidelity in _RECORD.iter_unpack(data):
        if layer >= MAX_LAYERS or not 0 < num_bytes <= MAX_RAW_BYTES or not 0 < raw_bytes <= MAX_RAW_BYTES:
            raise CorruptFrame(f"an impossible record: layer {layer}, {num_bytes} bytes for {raw_bytes}")
        try:
            known = _CODECS[codec], _FIDELITIES[fidelity]
        except KeyError:
            raise CorruptFrame(f"a record names codec {codec} and fidelity {fidelity}") from None
        records.append(new(EntryRecord, (key, checksum, place, num_bytes, raw_bytes, layer, *known)))
    return records
