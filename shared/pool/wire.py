"""Messages that carry frames: protobuf on the wire, read and written without a message object for each frame.

The generated classes copy every payload twice each way. Here a batch is written by joining headers and payloads once,
and read by slicing the message. What is written is byte for byte what the generated code would write. What is read
that fast is what serialisers of protobuf write, fields in order; everything else goes through the generated parser.
"""

import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError

from shared.errors import CorruptFrame, PrfaasError
from shared.ids import BlockKey
from shared.kv.codec import Codec, Fidelity, Payload
from shared.kv.frame import Frame
from shared.kv.hashing import KEY_BYTES
from shared.proto import prfaas_pb2 as pb
from shared.rpc.convert import frame_from_message

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


class _Form(NamedTuple):
    """What the headers of like frames have in common: all but key and checksum. Most messages have frames of one."""

    before: bytes  # the key
    between: bytes  # key and checksum
    after: bytes  # the checksum
    head: struct.Struct  # before, key, between, checksum, after


@lru_cache(maxsize=1024)
def _form(layer: int, codec: Codec, fidelity: Fidelity, raw_bytes: int, payload_bytes: int) -> _Form:
    """Return the form of frames that leave no field out but, at most, the layer."""
    number = b"\x10" + _varint(layer) if layer else b""
    between = b"%b\x18%b\x20%b\x28%b\x31" % (number, _SMALL[codec], _SMALL[fidelity], _varint(raw_bytes))
    after = b"\x3a" + _varint(payload_bytes)
    num_bytes = 2 + KEY_BYTES + len(between) + 8 + len(after) + payload_bytes
    before = b"\x0a%b\x0a\x20" % _varint(num_bytes)
    return _Form(before, between, after, struct.Struct(f"<{len(before)}s{KEY_BYTES}s{len(between)}sQ{len(after)}s"))


def encode_publish(message: "pb.PublishRequest | Sequence[Frame]") -> bytes:
    """Write a `PublishRequest`; a sequence of frames is one with a batch."""
    return message.SerializeToString() if isinstance(message, pb.PublishRequest) else _batch(_IN_PUBLISH, message)


def encode_fetch(message: "pb.FetchReply | Sequence[Frame]") -> bytes:
    """Write a `FetchReply`; a sequence of frames is one with a batch."""
    return message.SerializeToString() if isinstance(message, pb.FetchReply) else _batch(_IN_FETCH, message)


def decode_publish(data: bytes) -> "pb.PublishRequest | list[Frame] | Unreadable":
    """Read a `PublishRequest`; one with a batch comes as its frames, not verified. Payloads are views of `data`."""
    return _decoded(data, _IN_PUBLISH, pb.PublishRequest)


def decode_fetch(data: bytes) -> "pb.FetchReply | list[Frame] | Unreadable":
    """Read a `FetchReply`, as `decode_publish` does a request."""
    return _decoded(data, _IN_FETCH, pb.FetchReply)


def _batch(tag: bytes, frames: Iterable[Frame]) -> bytes:
    parts: list[Payload] = [b""]
    size = 0
    for frame in frames:
        key, layer, codec, fidelity, raw_bytes, payload, checksum = frame
        num_bytes = len(payload)
        if num_bytes and raw_bytes and checksum and len(key) == KEY_BYTES:
            before, between, after, head = _form(layer, codec, fidelity, raw_bytes, num_bytes)
            header = head.pack(before, key, between, checksum, after)
        else:
            header = _header(frame)
        parts += (header, payload)
        size += len(header) + num_bytes
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


def _decoded(data: bytes, tag: bytes, kind: type[Batch]) -> "Batch | list[Frame] | Unreadable":
    if data.startswith(tag) and (frames := _frames(data)) is not None:
        return frames
    try:
        message = kind.FromString(data)
        return [frame_from_message(m) for m in message.frames.frames] if message.HasField("frames") else message
    except DecodeError as error:
        return Unreadable(CorruptFrame(f"a message that is no {kind.__name__}: {error}"))
    except CorruptFrame as error:
        return Unreadable(error)


def _frames(data: bytes) -> list[Frame] | None:
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
        num_bytes = _value(payload_length)
        at = first + num_bytes
        number, raw = _value(layer) if layer else 0, _value(raw_bytes)
        if match.end(1) + _value(length) != at or at > end or number >= _UINT32_END or raw >= _UINT32_END:
            return None
        if codec not in _CODECS or fidelity not in _FIDELITIES:
            return None
        like = Frame(
            BlockKey(key),
            number,
            _CODECS[codec],
            _FIDELITIES[fidelity],
            raw,
            view[first:at],
            int.from_bytes(checksum, "little"),
        )
        frames.append(like)
        at = _append_like(like, data, view, at, frames)
    return frames


def _append_like(like: Frame, data: bytes, view: memoryview, at: int, frames: list[Frame]) -> int:
    """Read frames that differ from one in key, checksum and payload only; return where they end."""
    _, layer, codec, fidelity, raw, payload, _ = like
    num_bytes = len(payload)
    *form, head = _form(layer, codec, fidelity, raw, num_bytes)
    new = tuple.__new__
    last = len(data) - head.size - num_bytes
    while at <= last:
        before, key, between, checksum, after = head.unpack_from(data, at)
        if [before, between, after] != form:
            break
        first = at + head.size
        at = first + num_bytes
        frames.append(new(Frame, (key, layer, codec, fidelity, raw, view[first:at], checksum)))
    return at


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
