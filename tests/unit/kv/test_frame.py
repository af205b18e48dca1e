"""Frames: what was sealed comes back, and nothing else passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import CorruptFrame
from shared.ids import BlockKey
from shared.kv.codec import FIDELITY_OF, Codec, EntryShape, Fidelity
from shared.kv.frame import Frame, _digest, is_intact, open_frame, seal, verify

KEY = BlockKey(bytes(range(32)))


SHAPE = EntryShape.of_kv(4, 1, 4, "bfloat16")  # 64 bytes


@given(st.binary(min_size=64, max_size=64), st.sampled_from(Codec))
def test_open_returns_what_was_sealed(raw: bytes, codec: Codec) -> None:
    frame = seal(KEY, 3, raw, codec, SHAPE)
    assert frame.fidelity is FIDELITY_OF[codec]
    opened = open_frame(frame, SHAPE, at_least=Fidelity.INT4)
    assert len(opened) == 64
    assert bytes(opened) == raw or frame.fidelity is not Fidelity.LOSSLESS


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("asked", Fidelity)
def test_a_frame_of_a_lower_fidelity_than_asked_for_is_refused(codec: Codec, asked: Fidelity) -> None:
    frame = seal(KEY, 0, bytes(64), codec, SHAPE)
    if FIDELITY_OF[codec] <= asked:
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
