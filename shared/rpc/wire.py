"""Messages that carry frames: protobuf on the wire, read and written without a message object for each frame.

The generated classes copy every payload twice each way. Here a batch is written by joining headers and payloads once,
and read by slicing the message. What is written is byte for byte what the generated code would write. What is read
that fast is what serialisers of protobuf write, fields in order; everything else goes through the generated parser.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from google.protobuf.message import DecodeError

from shared.errors import CorruptFrame, PrfaasError
from shared.ids import BlockKey
from shared.kv.codec import Codec, Fidelity, Payload
from shared.kv.frame import Frame
from shared.proto import prfaas_pb2 as pb
from shared.rpc.convert import frame_from_message

Keep = Callable[[Payload], Payload]
"""Makes a payload independent of the message it came in: for who stores frames."""


Batch = TypeVar("Batch", pb.PublishRequest, pb.FetchReply)


@dataclass(frozen=True)
class Unreadable:
    """Stands for a message that is none of ours. A deserialiser that raises would end the call without a word."""

    error: PrfaasError


# One frame of a batch, up to its payload: its length, then the fields of `Frame` in order, defaults left out.
_VARINT = rb"([\x80-\xff]{0,4}[\x00-\x7f])"
_FRAME = re.compile(
    rb"\x0a" + _VARINT + rb"\x0a\x20(.{32})(?:\x10" + _VARINT + rb")?\x18(.)\x20(.)\x28" + _VARINT + rb"\x31(.{8})\x3a"
    rb"" + _VARINT,
    re.DOTALL,
)
_CODECS = {bytes([codec]): codec for codec in Codec}
_FIDELITIES = {bytes([fidelity]): fidelity for fidelity in Fidelity}
_SMALL = [bytes([value]) for value in range(128)]
_UINT32_END = 1 << 32

# Field numbers in the messages' oneofs.
_IN_PUBLISH, _IN_FETCH = b"\x12", b"\x0a"


def encode_publish(message: "pb.PublishRequest | Sequence[Frame]") -> bytes:
    """Write a `PublishRequest`; a sequence of frames is one with a batch."""
    return message.SerializeToString() if isinstance(message, pb.PublishRequest) else _batch(_IN_PUBLISH, message)


def encode_fetch(message: "pb.FetchReply | Sequence[Frame]") -> bytes:
    """Write a `FetchReply`; a sequence of frames is one with a batch."""
    return message.SerializeToString() if isinstance(message, pb.FetchReply) else _batch(_IN_FETCH, message)


def decode_publish(data: bytes, keep: Keep | None = None) -> "pb.PublishRequest | list[Frame] | Unreadable":
    """Read a `PublishRequest`; one with a batch comes as its frames, not verified.

    Payloads are views of `data`, or what `keep` makes of them.
    """
    return _decoded(data, _IN_PUBLISH, pb.PublishRequest, keep)


def decode_fetch(data: bytes, keep: Keep | None = None) -> "pb.FetchReply | list[Frame] | Unreadable":
    """Read a `FetchReply`, as `decode_publish` does a request."""
    return _decoded(data, _IN_FETCH, pb.FetchReply, keep)


def _batch(tag: bytes, frames: Iterable[Frame]) -> bytes:
    parts: list[Payload] = [b""]
    size = 0
    for frame in frames:
        header = _header(frame)
        payload = frame.payload
        parts += (header, payload)
        size += len(header) + len(payload)
    parts[0] = tag + _varint(size)
    return b"".join(parts)


def _header(frame: Frame) -> bytes:
    """Return everything of a frame in a batch before its payload. Defaults are left out, as protobuf does."""
    num_bytes = len(frame.payload)
    fields = b"".join(
        (
            b"\x0a" + _varint(len(frame.key)) + frame.key,
            b"\x10" + _varint(frame.layer) if frame.layer else b"",
            b"\x18" + _SMALL[frame.codec],
            b"\x20" + _SMALL[frame.fidelity],
            b"\x28" + _varint(frame.raw_bytes) if frame.raw_bytes else b"",
            b"\x31" + frame.checksum.to_bytes(8, "little") if frame.checksum else b"",
            b"\x3a" + _varint(num_bytes) if num_bytes else b"",
        )
    )
    return b"\x0a" + _varint(len(fields) + num_bytes) + fields


def _decoded(data: bytes, tag: bytes, kind: type[Batch], keep: Keep | None) -> "Batch | list[Frame] | Unreadable":
    if data.startswith(tag) and (frames := _frames(data, keep)) is not None:
        return frames
    try:
        message = kind.FromString(data)
        if not message.HasField("frames"):
            return message
        frames = [frame_from_message(m) for m in message.frames.frames]
        return [replace(f, payload=keep(f.payload)) for f in frames] if keep else frames
    except DecodeError as error:
        return Unreadable(CorruptFrame(f"a message that is no {kind.__name__}: {error}"))
    except CorruptFrame as error:
        return Unreadable(error)


def _frames(data: bytes, keep: Keep | None) -> list[Frame] | None:
    """Return the frames of a message that is one batch and nothing else; None when a parser must look at it."""
    size, at = _read_varint(data, 1)
    end = len(data)
    if at + size != end:
        return None
    view = memoryview(data)
    frames: list[Frame] = []
    while at < end:
        match = _FRAME.match(data, at)
        if match is None:
            return None
        length, key, layer, codec, fidelity, raw_bytes, checksum, payload_length = match.groups()
        first = match.end()
        at = first + _value(payload_length)
        number, raw = _value(layer) if layer else 0, _value(raw_bytes)
        if match.end(1) + _value(length) != at or at > end or number >= _UINT32_END or raw >= _UINT32_END:
            return None
        if codec not in _CODECS or fidelity not in _FIDELITIES:
            return None
        payload: Payload = view[first:at] if keep is None else keep(view[first:at])
        seal = int.from_bytes(checksum, "little")
        frames.append(Frame(BlockKey(key), number, _CODECS[codec], _FIDELITIES[fidelity], raw, payload, seal))
    return frames


@lru_cache(maxsize=1024)  # frames of a message have one size
def _varint(value: int) -> bytes:
    if value < 128:
        return _SMALL[value]
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)


@lru_cache(maxsize=1024)
def _value(varint: bytes) -> int:
    """Return the number in the bytes of one whole varint."""
    if len(varint) == 1:
        return varint[0]
    value = 0
    for byte in reversed(varint):
        value = value << 7 | byte & 127
    return value


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a varint of at most five bytes and where it ends; (-1, at) when there is none."""
    for end in range(at, min(at + 5, len(data))):
        if data[end] < 128:
            return _value(data[at : end + 1]), end + 1
    return -1, at
