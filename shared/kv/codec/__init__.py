"""How an entry's bytes travel: `table` lists the codecs, one module each has their forms."""

from shared.errors import CorruptFrame
from shared.kv.codec.spec import CodecCost, CodecSpec, Fidelity, Payload
from shared.kv.codec.table import LOSSLESS_CODECS, Codec
from shared.kv.layout import EntryShape

__all__ = [
    "LOSSLESS_CODECS",
    "SINK_TOKENS",
    "Codec",
    "CodecCost",
    "CodecSpec",
    "EntryShape",
    "Fidelity",
    "Payload",
    "decode",
    "encode",
]

SINK_TOKENS = 2
"""Leading tokens of a prompt that lossy codecs are asked to keep whole: all later tokens attend to the first ones
strongly (attention sinks, StreamingLLM, arXiv 2309.17453), so that their error is everybody's."""


_RAW = Codec.RAW  # to look a member up in its Enum takes longer than all that is done with it


def encode(raw: Payload, codec: Codec, shape: EntryShape | None = None, num_whole: int = 0) -> Payload:
    """Return `raw`, one entry of `shape`, in the codec's form. Not for the event loop: it takes too long.

    `RAW` needs no shape. A lossy codec keeps the first `num_whole` tokens as they are, and an entry
    that it cannot represent (infinities, absurd ranges) wholly.
    """
    if codec is _RAW:
        return raw
    assert shape is not None, f"{codec.name} needs the entry's shape"
    assert len(raw) == shape.num_bytes, "an entry is as long as its shape says"
    return codec.spec.encode(raw, shape, num_whole)


def decode(payload: Payload, codec: Codec, shape: EntryShape | None = None) -> Payload:
    """Undo `encode`. Raises `CorruptFrame` unless the payload decodes to exactly one entry of `shape`."""
    if codec is _RAW:
        raw = payload
    elif shape is None:
        raise CorruptFrame(f"a payload in {codec.name} cannot be read without its shape")
    else:
        raw = codec.spec.decode(payload, shape)
    if shape is not None and len(raw) != shape.num_bytes:
        raise CorruptFrame(f"payload decodes to {len(raw)} bytes, the entry has {shape.num_bytes}")
    return raw
