"""Codecs: what they give back, how much smaller it gets, and that no payload can do harm."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.errors import CorruptFrame
from shared.kv.codec import FIDELITY_OF, SINK_TOKENS, Codec, EntryShape, Fidelity, decode, encode
from shared.kv.codec.floats import from_floats, to_floats
from shared.kv.codec.native import load_kernels
from shared.kv.codec.quantised import INT4_SHARES, INT8_SHARES, StepShares
from shared.kv.codec.steps import quantise, quantise_in_numpy, restore, restore_in_numpy
from shared.kv.layout import Dtype, EntryPart
from shared.proto import prfaas_pb2 as pb

LOSSLESS = [codec for codec in Codec if FIDELITY_OF[codec] is Fidelity.LOSSLESS]
LOSSY = [codec for codec in Codec if codec not in LOSSLESS]
DTYPES: list[Dtype] = ["bfloat16", "float16", "float32"]
SHAPE = EntryShape.of_kv(64, 2, 32, "bfloat16")

shapes = st.builds(
    EntryShape.of_kv, st.integers(1, 9), st.integers(1, 3), st.sampled_from([1, 2, 7, 16]), st.sampled_from(DTYPES)
)


@st.composite
def entries(draw: st.DrawFn) -> tuple[EntryShape, bytes]:
    """Any bytes are an entry: among them infinities, NaN and numbers of all sizes."""
    shape = draw(shapes)
    size = shape.num_bytes
    return shape, draw(st.binary(min_size=size, max_size=size))


def like_kv(shape: EntryShape, seed: int = 0) -> NDArray[np.float32]:
    """Normal numbers, spread differently over channels, keys with channels far from zero: `[2, tokens, channels]`."""
    rng = np.random.default_rng(seed)
    num_channels = shape.parts[0].width
    spread = np.exp(rng.normal(size=(2, 1, num_channels))) * np.array([1.0, 0.3]).reshape(2, 1, 1)
    mean = np.zeros((2, 1, num_channels))
    mean[0, 0, ::5] = 3
    return np.asarray(mean + spread * rng.normal(size=(2, shape.block_tokens, num_channels)), np.float32)


def packed(numbers: NDArray[np.float32], dtype: Dtype = "bfloat16") -> bytes:
    return bytes(from_floats(numbers.copy(), dtype))


@given(entries(), st.sampled_from(LOSSLESS))
def test_lossless_codecs_give_back_every_bit(entry: tuple[EntryShape, bytes], codec: Codec) -> None:
    shape, raw = entry
    assert bytes(decode(encode(raw, codec, shape), codec, shape)) == raw


@given(entries(), st.sampled_from(LOSSY), st.integers(0, 12))
def test_lossy_codecs_take_any_entry_and_keep_its_size(
    entry: tuple[EntryShape, bytes], codec: Codec, num_whole: int
) -> None:
    shape, raw = entry
    decoded = bytes(decode(encode(raw, codec, shape, num_whole), codec, shape))
    assert len(decoded) == len(raw)
    before, after = (to_floats(data, shape.dtype).reshape(2, shape.block_tokens, -1) for data in (raw, decoded))
    assert np.array_equal(before[:, :num_whole], after[:, :num_whole], equal_nan=True)
    if not np.isfinite(before[:, num_whole:]).all():
        assert decoded == raw


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("codec", "limit"), [(Codec.INT8, 0.04), (Codec.INT4, 0.3)])
def test_what_is_lost_is_a_share_of_a_channels_spread(codec: Codec, limit: float, dtype: Dtype) -> None:
    shape = replace(SHAPE, dtype=dtype)
    raw = packed(like_kv(shape), dtype)
    before = to_floats(raw, dtype).reshape(2, shape.block_tokens, -1)
    after = to_floats(decode(encode(raw, codec, shape), codec, shape), dtype).reshape(before.shape)
    keys, values = np.abs(after - before)
    assert (keys.mean(axis=0) < limit * before[0].std(axis=0)).all()
    by_token = np.sqrt((before[1] ** 2).mean(axis=1))
    assert (values.mean(axis=1) < limit * by_token).all()


@pytest.mark.parametrize(
    ("codec", "ratio"), [(Codec.RAW, 1), (Codec.LZ4, 1.03), (Codec.ZSTD, 1.35), (Codec.INT8, 2.1), (Codec.INT4, 3.8)]
)
def test_entries_get_smaller(codec: Codec, ratio: float) -> None:
    raw = packed(like_kv(SHAPE))
    assert len(raw) / len(encode(raw, codec, SHAPE)) >= ratio


def test_the_first_tokens_of_a_prompt_are_kept_whole() -> None:
    numbers = like_kv(SHAPE)
    numbers[:, 0] *= 50  # would set the steps of all others, if it had a part in them
    whole = packed(numbers)
    decoded = to_floats(decode(encode(whole, Codec.INT4, SHAPE, SINK_TOKENS), Codec.INT4, SHAPE), "bfloat16")
    decoded = decoded.reshape(numbers.shape)
    exact = to_floats(whole, "bfloat16").reshape(numbers.shape)
    assert np.array_equal(decoded[:, :SINK_TOKENS], exact[:, :SINK_TOKENS])
    assert np.abs(decoded - numbers)[0, SINK_TOKENS:].mean() < 0.25 * numbers[0, SINK_TOKENS:].std(axis=0).mean()


@pytest.mark.parametrize("codec", LOSSY)
def test_constant_entries_stay_what_they_are(codec: Codec) -> None:
    for value in (0.0, 3.0, -0.25):
        numbers = np.full((2, 64, 64), value, np.float32)
        decoded = to_floats(decode(encode(packed(numbers), codec, SHAPE), codec, SHAPE), "bfloat16")
        assert np.allclose(decoded, value, rtol=0.2)


@settings(max_examples=300)
@given(
    codec=st.sampled_from([codec for codec in Codec if codec is not Codec.RAW]),
    shape=shapes,
    cut=st.integers(0, 400),
    noise=st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), max_size=4),
    tail=st.binary(max_size=20),
)
def test_a_damaged_payload_is_corrupt_or_has_the_right_size(
    codec: Codec, shape: EntryShape, cut: int, noise: list[tuple[int, int]], tail: bytes
) -> None:
    payload = bytearray(encode(packed(like_kv(shape), shape.dtype), codec, shape))
    for place, bits in noise:
        payload[place % len(payload)] ^= bits
    damaged = bytes(payload[: max(0, len(payload) - cut)]) + tail
    try:
        decoded = decode(damaged, codec, shape)
    except CorruptFrame:
        return
    assert len(decoded) == shape.num_bytes


@given(st.binary(max_size=200), st.sampled_from(Codec), shapes)
def test_garbage_is_corrupt(payload: bytes, codec: Codec, shape: EntryShape) -> None:
    try:
        decoded = decode(payload, codec, shape)
    except CorruptFrame:
        return
    assert len(decoded) == shape.num_bytes


def test_the_table_and_the_wire_have_the_same_numbers() -> None:
    """The table adds a codec; `prfaas.proto` has to name it too, for clients in other languages."""
    wire = {name.removeprefix("CODEC_"): number for name, number in pb.Codec.items() if number}
    assert {codec.name: int(codec) for codec in Codec} == wire
    classes = {name.removeprefix("FIDELITY_"): number for name, number in pb.Fidelity.items() if number}
    assert {fidelity.name: int(fidelity) for fidelity in Fidelity} == classes


def test_a_codec_is_found_by_its_number() -> None:
    assert Codec(4) is Codec.INT4
    assert Codec["ZSTD"] == 5
    with pytest.raises(ValueError, match="99"):
        Codec(99)


@pytest.mark.parametrize("codec", Codec)
def test_an_entry_of_other_parts_is_kept_whole_by_every_codec(codec: Codec) -> None:
    """A latent of 40 numbers and a rotated key of 8, as in multi-head latent attention (arXiv 2405.04434)."""
    shape = EntryShape(16, (EntryPart("latent", 1, 40), EntryPart("rope", 1, 8)), "bfloat16")
    assert shape.num_bytes == 16 * 48 * 2
    assert shape.slices(2) == [slice(0, 160), slice(1280, 1312)]
    raw = np.random.default_rng(0).bytes(shape.num_bytes)
    assert bytes(decode(encode(raw, codec, shape, 2), codec, shape)) == raw


@pytest.mark.parametrize("codec", LOSSY)
def test_integers_of_k_and_v_are_not_taken_for_other_parts(codec: Codec) -> None:
    payload = encode(packed(like_kv(SHAPE)), codec, SHAPE)
    latent = EntryShape(SHAPE.block_tokens, (EntryPart("latent", 1, 128),), "bfloat16")
    assert latent.num_bytes == SHAPE.num_bytes
    with pytest.raises(CorruptFrame, match="other parts"):
        decode(payload, codec, latent)


def test_a_payload_without_its_shape_cannot_be_read() -> None:
    with pytest.raises(CorruptFrame, match="shape"):
        decode(encode(packed(like_kv(SHAPE)), Codec.ZSTD, SHAPE), Codec.ZSTD)


def test_a_better_class_serves_a_lower_one() -> None:
    assert Fidelity.LOSSLESS.satisfies(Fidelity.INT4)
    assert Fidelity.INT8.satisfies(Fidelity.INT8)
    assert not Fidelity.INT4.satisfies(Fidelity.INT8)
    assert not Fidelity.INT8.satisfies(Fidelity.LOSSLESS)
    assert set(FIDELITY_OF.values()) == set(Fidelity), "each class has a codec"


NATIVE = pytest.mark.skipif(load_kernels() is None, reason="no C compiler")


@NATIVE
@given(
    shape=st.builds(
        EntryShape.of_kv,
        st.integers(1, 70),
        st.integers(1, 3),
        st.sampled_from([16, 64, 112, 272]),
        st.just("bfloat16"),
    ),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-30, 1e-6, 0.02, 1.0, 300.0]),
    shares=st.sampled_from([INT8_SHARES, INT4_SHARES]),
    num_whole=st.integers(0, 5),
)
def test_c_and_numpy_make_the_same_bytes(
    shape: EntryShape, seed: int, scale: float, shares: StepShares, num_whole: int
) -> None:
    raw = packed(like_kv(shape, seed) * np.float32(scale))
    num_whole = min(num_whole, shape.block_tokens - 1)
    native = quantise(raw, shape, num_whole, *shares)
    plain = quantise_in_numpy(raw, shape, num_whole, *shares)
    assert native is not None
    assert plain is not None
    assert np.array_equal(native.side, plain.side)
    assert np.array_equal(native.numbers, plain.numbers)
    outs = [np.zeros(shape.num_bytes, np.uint8) for _ in range(2)]
    parts = native.numbers[0].tobytes(), native.numbers[1].tobytes(), native.side.tobytes()
    restore(*parts, shape, num_whole, outs[0])
    restore_in_numpy(*parts, shape, num_whole, outs[1])
    assert np.array_equal(outs[0], outs[1])


@NATIVE
@given(st.binary(min_size=256, max_size=256))
def test_c_and_numpy_agree_on_any_numbers(raw: bytes) -> None:
    shape = EntryShape.of_kv(4, 1, 16, "bfloat16")
    native, plain = (way(raw, shape, 0, 0.04, 0.04) for way in (quantise, quantise_in_numpy))
    assert (native is None) == (plain is None)
    if native is not None and plain is not None:
        assert np.array_equal(native.side, plain.side)
        assert np.array_equal(native.numbers, plain.numbers)


def test_an_entry_may_come_in_any_kind_of_memory() -> None:
    raw = packed(like_kv(SHAPE))
    expected = encode(raw, Codec.INT4, SHAPE, 1)
    for memory in (memoryview(raw), memoryview(bytearray(raw))):
        assert encode(memory, Codec.INT4, SHAPE, 1) == expected


@pytest.mark.parametrize("codec", LOSSY)
def test_another_version_is_corrupt(codec: Codec) -> None:
    payload = bytes(encode(packed(like_kv(SHAPE)), codec, SHAPE))
    with pytest.raises(CorruptFrame, match="version 1"):
        decode(b"\x01" + payload[1:], codec, SHAPE)
