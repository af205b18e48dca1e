"""Frames: what was sealed comes back, and nothing else passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import CorruptFrame
from shared.ids import BlockKey
from shared.kv.codec import Codec, EntryShape, Fidelity
from shared.kv.frame import Frame, _digest, is_intact, open_frame, raw_headers, seal, seal_all, verify, verify_all
from shared.kv.payloads import digests

KEY = BlockKey(bytes(range(32)))


SHAPE = EntryShape.of_kv(4, 1, 4, "bfloat16")  # 64 bytes


@given(st.binary(min_size=64, max_size=64), st.sampled_from(Codec))
def test_open_returns_what_was_sealed(raw: bytes, codec: Codec) -> None:
    frame = seal(KEY, 3, raw, codec, SHAPE)
    assert frame.fidelity is codec.spec.fidelity
    opened = open_frame(frame, SHAPE, at_least=Fidelity.INT4)
    assert len(opened) == 64
    assert bytes(opened) == raw or frame.fidelity is not Fidelity.LOSSLESS


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("asked", Fidelity)
def test_a_frame_of_a_lower_fidelity_than_asked_for_is_refused(codec: Codec, asked: Fidelity) -> None:
    frame = seal(KEY, 0, bytes(64), codec, SHAPE)
    if codec.spec.fidelity <= asked:
        assert len(open_frame(frame, SHAPE, asked)) == 64
    else:
        with pytest.raises(CorruptFrame, match="asked for"):
            open_frame(frame, SHAPE, asked)


def test_a_lossy_codec_cannot_claim_to_be_lossless() -> None:
    frame = seal(KEY, 0, bytes(64), Codec.INT4, SHAPE)._replace(fidelity=Fidelity.LOSSLESS)
    with pytest.raises(CorruptFrame, match="asked for"):
        open_frame(frame._replace(checksum=_digest(*frame[:-1])), SHAPE)


def test_an_entry_of_another_shape_is_refused() -> None:
    frame = seal(KEY, 0, bytes(64), Codec.RAW)
    with pytest.raises(CorruptFrame):
        open_frame(frame, EntryShape.of_kv(4, 1, 8, "bfloat16"))


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize(
    "change",
    [
        {"key": BlockKey(bytes(32))},
        {"key": BlockKey(b"short")},
        {"layer": 4},
        {"raw_bytes": 63},
        {"raw_bytes": 0},
        {"checksum": 1},
        {"payload": b"other bytes"},
    ],
)
def test_any_changed_field_is_found(codec: Codec, change: dict[str, object]) -> None:
    frame = seal(KEY, 3, bytes(64), codec, SHAPE)
    assert is_intact(frame)
    changed = frame._replace(**change)  # type: ignore[arg-type]
    assert not is_intact(changed)
    with pytest.raises(CorruptFrame):
        verify(changed)


def test_a_flipped_bit_is_found() -> None:
    frame = seal(KEY, 3, bytes(1000), Codec.RAW)
    flipped = bytearray(frame.payload)
    flipped[500] ^= 1
    with pytest.raises(CorruptFrame, match="checksum"):
        open_frame(frame._replace(payload=bytes(flipped)))


def test_a_payload_that_passes_its_checksum_but_does_not_decode_is_corrupt() -> None:
    good = seal(KEY, 3, bytes(64), Codec.RAW)
    liar = seal(KEY, 3, bytes(64), Codec.LZ4, SHAPE)
    forged = Frame(KEY, 3, Codec.LZ4, Fidelity.LOSSLESS, 64, good.payload, 0)
    with pytest.raises(CorruptFrame, match="not this entry"):
        open_frame(forged._replace(checksum=_digest(*forged[:-1])), SHAPE)
    assert open_frame(liar, SHAPE) == bytes(64)


@given(st.lists(st.binary(min_size=1, max_size=700), max_size=6), st.integers(0, 500))
def test_many_are_sealed_as_one_is(raws: list[bytes], layer: int) -> None:
    keys = [BlockKey(bytes([i] * 32)) for i in range(len(raws))]
    frames = seal_all(keys, layer, raws)
    assert frames == [seal(key, layer, raw, Codec.RAW) for key, raw in zip(keys, raws, strict=True)]
    assert all(type(frame) is Frame for frame in frames)
    assert verify_all(frames) == [True] * len(raws)


def test_entries_that_were_digested_before_are_sealed_alike() -> None:
    keys, raws = [KEY, BlockKey(bytes(32))], [bytes(500), bytes(range(250)) * 2]
    checksums = digests(raw_headers(keys, 7, 500), raws)
    assert seal_all(keys, 7, raws, checksums) == seal_all(keys, 7, raws)


@pytest.mark.parametrize("num_bytes", [64, 4096])
@pytest.mark.parametrize(
    "change",
    [
        {"key": BlockKey(bytes(32))},
        {"key": BlockKey(b"short")},
        {"layer": 4},
        {"layer": -1},
        {"layer": 70000},
        {"raw_bytes": 63},
        {"raw_bytes": 0},
        {"raw_bytes": 2**33},
        {"checksum": 1},
        {"payload": b"other bytes"},
        {"payload": bytes(5000)},
        {"codec": Codec.LZ4},
        {"fidelity": Fidelity.INT8},
    ],
)
def test_of_many_those_that_were_changed_are_found(num_bytes: int, change: dict[str, object]) -> None:
    frames = [seal(KEY, layer, bytes([layer] * num_bytes), Codec.RAW) for layer in range(4)]
    frames[2] = frames[2]._replace(**change)  # type: ignore[arg-type]
    assert verify_all(frames) == [True, True, False, True] == [is_intact(frame) for frame in frames]
