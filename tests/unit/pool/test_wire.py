"""Frames on the wire: what we write the generated code reads and the other way round, whatever the bytes."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import CorruptFrame
from shared.ids import BlockKey
from shared.kv.codec import Codec, Fidelity
from shared.kv.frame import Frame, seal, verify
from shared.pool.wire import Unreadable, decode_fetch, decode_publish, encode_fetch, encode_publish
from shared.proto import prfaas_pb2 as pb
from shared.rpc.convert import add_frames, frame_from_message

NUMBERS = st.one_of(st.sampled_from([0, 1, 127, 128, 300, 1 << 14, (1 << 21) - 1, (1 << 32) - 1]), st.integers(0, 600))
ANY = st.lists(
    st.builds(
        Frame,
        key=st.binary(min_size=32, max_size=32).map(BlockKey),
        layer=NUMBERS,
        codec=st.sampled_from(Codec),
        fidelity=st.sampled_from(Fidelity),
        raw_bytes=NUMBERS,
        payload=st.binary(max_size=300),
        checksum=st.integers(0, (1 << 64) - 1),
    ),
    max_size=4,
)
CHANGES = st.tuples(st.binary(min_size=32, max_size=32).map(BlockKey), st.integers(0, (1 << 64) - 1))


def followed(frames: list[Frame], changes: list[tuple[BlockKey, int]]) -> list[Frame]:
    """The first frame, some that have its form, and the others: what one message mostly carries is alike."""
    like = [frames[0]._replace(key=key, checksum=checksum) for key, checksum in changes] if frames else []
    return [*frames[:1], *like, *frames[1:]]


FRAMES = st.builds(followed, ANY, st.lists(CHANGES, max_size=3))
DECODERS: list[tuple[Callable[[bytes], Any], type[Any]]] = [
    (decode_publish, pb.PublishRequest),
    (decode_fetch, pb.FetchReply),
]
KEY = BlockKey(bytes(range(32)))
SAMPLE = [seal(KEY, layer, bytes([layer]) * 200, Codec.RAW) for layer in range(3)]


def generated(kind: type[Any], frames: list[Frame]) -> bytes:
    message = kind(frames=pb.FrameBatch())
    add_frames(message.frames, frames)
    return bytes(message.SerializeToString())


def by_generated_code(kind: type[Any], data: bytes) -> Any:
    """What a message means according to the generated parser; the type of the error when it means nothing."""
    try:
        message = kind.FromString(data)
        return [frame_from_message(m) for m in message.frames.frames] if message.HasField("frames") else message
    except Exception:  # noqa: BLE001 - the oracle: any refusal
        return CorruptFrame


def frames_in(decoded: Any) -> list[Frame]:
    assert isinstance(decoded, list)
    return decoded


def payload_types(decoded: Any) -> list[type[Any]]:
    return [type(frame.payload) for frame in frames_in(decoded)]


def ours(decode: Callable[[bytes], Any], data: bytes) -> Any:
    decoded = decode(data)
    return type(decoded.error) if isinstance(decoded, Unreadable) else decoded


@given(FRAMES)
def test_what_we_write_is_what_the_generated_code_writes(frames: list[Frame]) -> None:
    assert encode_publish(frames) == generated(pb.PublishRequest, frames)
    assert encode_fetch(frames) == generated(pb.FetchReply, frames)


@given(FRAMES)
def test_what_the_generated_code_writes_comes_as_frames(frames: list[Frame]) -> None:
    assert decode_publish(generated(pb.PublishRequest, frames)) == frames
    assert decode_fetch(generated(pb.FetchReply, frames)) == frames


def test_other_messages_pass() -> None:
    renew = pb.PublishRequest(renew=pb.PublishRenew())
    missing = pb.FetchReply(missing=pb.FetchMissing(blocks=[pb.BlockEntries(key=KEY, layers=b"\1")]))
    assert decode_publish(encode_publish(renew)) == renew
    assert decode_fetch(encode_fetch(missing)) == missing
    assert decode_publish(b"") == pb.PublishRequest()


def test_payloads_are_views() -> None:
    assert payload_types(decode_fetch(encode_fetch(SAMPLE))) == [memoryview] * 3


def test_frames_survive_both_ways() -> None:
    pairs: list[tuple[Any, Any]] = [(decode_publish, encode_publish), (decode_fetch, encode_fetch)]
    for decode, encode in pairs:
        frames = frames_in(decode(encode(SAMPLE)))
        assert frames == SAMPLE
        for frame in frames:
            verify(frame)
        assert encode(frames) == encode(SAMPLE), "a view is sent like the bytes it shows"


@pytest.mark.parametrize("change", [{"layer": 1 << 31}, {"raw_bytes": 0}, {"checksum": 0}, {"key": BlockKey(b"short")}])
def test_impossible_headers_travel_and_are_refused_by_their_checksum(change: dict[str, Any]) -> None:
    (frame,) = frames_in(decode_publish(encode_publish([SAMPLE[0]._replace(**change)])))
    with pytest.raises(CorruptFrame):
        verify(frame)


@settings(max_examples=400)
@given(
    st.sampled_from(DECODERS),
    FRAMES,
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3),
    st.binary(max_size=6),
    st.integers(0, 8),
)
def test_damaged_bytes_mean_what_the_generated_parser_says(
    pair: tuple[Callable[[bytes], Any], type[Any]],
    frames: list[Frame],
    flips: list[tuple[float, int]],
    tail: bytes,
    cut: int,
) -> None:
    decode, kind = pair
    data = bytearray(generated(kind, frames))
    for place, value in flips:
        if data:
            # Most of a message is payload, in which nothing can go wrong: aim at the headers.
            data[int(place * min(len(data), 160))] = value
    damaged = bytes(data[: len(data) - cut]) + tail
    assert ours(decode, damaged) == by_generated_code(kind, damaged)


@given(st.sampled_from(DECODERS), st.binary(max_size=40))
def test_garbage_means_what_the_generated_parser_says(
    pair: tuple[Callable[[bytes], Any], type[Any]], data: bytes
) -> None:
    decode, kind = pair
    assert ours(decode, data) == by_generated_code(kind, data)


@given(FRAMES, st.integers(1, 4))
def test_padded_varints_and_split_batches_are_protobuf_too(frames: list[Frame], padding: int) -> None:
    """Legal forms that no serialiser writes: an overlong length, and a batch in two pieces."""
    for decode, kind in DECODERS:
        whole = generated(kind, frames)
        assert ours(decode, whole + generated(kind, frames)) == by_generated_code(kind, whole + whole)
        if frames and len(whole) < 130:
            padded = whole[:1] + bytes([whole[1] | 128, *[128] * (padding - 1), 0]) + whole[2:]
            assert ours(decode, padded) == by_generated_code(kind, padded)
