"""Frames: what was sealed comes back, and nothing else passes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import CorruptFrame
from shared.ids import BlockKey
from shared.kv.codec import Codec, Fidelity
from shared.kv.frame import Frame, open_frame, seal, verify

KEY = BlockKey(bytes(range(32)))


@given(st.binary(min_size=1, max_size=300), st.sampled_from(Codec))
def test_open_returns_what_was_sealed(raw: bytes, codec: Codec) -> None:
    frame = seal(KEY, 3, raw, codec)
    assert frame.fidelity is Fidelity.LOSSLESS
    assert open_frame(frame) == raw


def test_lz4_shrinks_what_repeats_in_one_byte_plane() -> None:
    raw = b"".join(bytes([i * 37 % 251, 0x3F]) for i in range(4096))  # like bfloat16: a noisy and a steady byte
    assert len(seal(KEY, 0, raw, Codec.LZ4).payload) < 0.6 * len(raw)


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
    frame = seal(KEY, 3, bytes(64), codec)
    with pytest.raises(CorruptFrame):
        verify(replace(frame, **change))  # type: ignore[arg-type]


def test_a_flipped_bit_is_found() -> None:
    frame = seal(KEY, 3, bytes(1000), Codec.RAW)
    flipped = bytearray(frame.payload)
    flipped[500] ^= 1
    with pytest.raises(CorruptFrame, match="checksum"):
        open_frame(replace(frame, payload=bytes(flipped)))


def test_a_payload_that_passes_its_checksum_but_does_not_decode_is_corrupt() -> None:
    good = seal(KEY, 3, bytes(64), Codec.RAW)
    liar = seal(KEY, 3, bytes(64), Codec.LZ4)
    forged = Frame(KEY, 3, Codec.LZ4, Fidelity.LOSSLESS, 64, good.payload, 0)
    from shared.kv.frame import _checksum

    with pytest.raises(CorruptFrame, match="decode"):
        open_frame(replace(forged, checksum=_checksum(forged)))
    assert open_frame(liar) == bytes(64)
