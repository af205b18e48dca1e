"""Payloads in batches: with a C compiler and without one, as the xxhash package and NumPy have it."""

import random
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from shared.kv.codec import Payload
from shared.kv.payloads import (
    MAX_HEADER_BYTES,
    MIN_HEADER_BYTES,
    SHORT_BYTES,
    addresses_of,
    copies,
    copy_in,
    copy_in_sealed,
    copy_out,
    digests,
    load_payload_kernels,
)

STRIPE, BLOCK = 64, 1024
HEADER_BYTES = 40

needs_compiler = pytest.mark.skipif(load_payload_kernels() is None, reason="needs a C compiler")


@pytest.fixture(params=[pytest.param("native", marks=needs_compiler), "package"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "package":
        for module in (copies, sys.modules[digests.__module__]):
            monkeypatch.setattr(module, "load_payload_kernels", lambda: None)


def header(number: int, num_bytes: int = HEADER_BYTES) -> bytes:
    return random.Random(number).randbytes(num_bytes)


def expected(headers: list[bytes], payloads: list[Payload]) -> list[int]:
    return [xxh3_64_intdigest(raw, xxh3_64_intdigest(head)) for head, raw in zip(headers, payloads, strict=True)]


def lengths() -> list[int]:
    """Lengths around everything at which the algorithm changes its ways."""
    turns = [SHORT_BYTES, 256, BLOCK, BLOCK + STRIPE, 2 * BLOCK, 16 * BLOCK, 65536, 262144]
    return [turn + by for turn in turns for by in (-65, -64, -63, -1, 0, 1, 2, 63, 64, 65) if turn + by >= 0]


def test_all_lengths_around_the_turns_of_the_algorithm(way: None) -> None:
    data = random.Random(1).randbytes(max(lengths()))
    for length in (*lengths(), *range(SHORT_BYTES + 1, 4 * BLOCK, 7)):
        heads = [header(length), header(length + 1)]
        payloads: list[Payload] = [data[:length], memoryview(data)[-length:]]
        assert digests(heads, payloads) == expected(heads, payloads), length


@needs_compiler
@pytest.mark.parametrize("num_bytes", range(MIN_HEADER_BYTES, MAX_HEADER_BYTES + 1))
def test_all_lengths_of_headers(num_bytes: int) -> None:
    heads, payloads = [header(i, num_bytes) for i in range(3)], [header(i, 500 + i) for i in range(3)]
    assert digests(heads, list(payloads)) == expected(heads, list(payloads))


@given(st.lists(st.integers(0, 5000), max_size=8), st.randoms(use_true_random=False))
def test_any_payloads(sizes: list[int], rng: random.Random) -> None:
    heads, payloads = [rng.randbytes(HEADER_BYTES) for _ in sizes], [rng.randbytes(size) for size in sizes]
    assert digests(heads, list(payloads)) == expected(heads, list(payloads))


@pytest.mark.parametrize("num_threads", [0, 1, 2, 5, 64])
@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_several_threads_find_what_one_does(way: None, num_threads: int, count: int) -> None:
    data = random.Random(count).randbytes(40_000)
    heads = [header(i) for i in range(count)]
    payloads: list[Payload] = [memoryview(data)[i * 100 : 30_000 + 7 * i] for i in range(count)]
    assert digests(heads, payloads, num_threads) == expected(heads, payloads)


def test_views_of_all_kinds(way: None) -> None:
    data = bytearray(header(0, 5000))
    payloads: list[Payload] = [
        bytes(data),
        memoryview(data),
        memoryview(data).toreadonly(),
        memoryview(bytes(data))[1:4001],
    ]
    heads = [header(i) for i in range(len(payloads))]
    assert digests(heads, payloads) == expected(heads, payloads)


def test_memory_with_holes_is_refused(way: None) -> None:
    with pytest.raises(BufferError):
        digests([header(0)], [memoryview(bytes(5000))[::2]])


@needs_compiler
def test_another_thread_runs_while_a_batch_is_digested() -> None:
    """With a switch interval of a minute nobody else runs before the caller lets go of the lock by itself."""
    payload, ready, ran = bytes(64 * 2**20), threading.Event(), []

    def other() -> None:
        ready.wait(30)
        ran.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        ready.set()
        for _ in range(20):
            digests([header(0)], [payload])
            if ran:
                break
        found = list(ran)
    finally:
        sys.setswitchinterval(interval)
        thread.join(30)
    assert found


@pytest.mark.parametrize(
    ("num_parts", "part_bytes"), [(2, 4096), (1, 64 * 70), (2, 24576), (3, 128), (2, 100), (2, 64)]
)
def test_entries_are_copied_and_digested(way: None, num_parts: int, part_bytes: int) -> None:
    rng = np.random.default_rng(part_bytes)
    rows = rng.integers(0, 256, (num_parts, 9, part_bytes), np.uint8)
    numbers, length = [7, 0, 8, 3], num_parts * part_bytes
    memory = memoryview(bytearray(len(numbers) * length))
    slots = [memory[at : at + length] for at in range(0, len(memory), length)]
    heads = [header(number) for number in numbers]
    wanted: list[Payload] = [rows[:, number].tobytes() for number in numbers]
    assert copy_out(rows, numbers, slots, heads) == expected(heads, wanted)
    assert [bytes(slot) for slot in slots] == wanted


def test_of_entries_in_other_memory(way: None) -> None:
    """Neither a part's bytes nor its entries need lie side by side."""
    rows = np.arange(2 * 6 * 1024, dtype=np.uint8).reshape(2, 6, 1024)[:, ::2]
    slots = [memoryview(bytearray(2048))]
    heads = [header(0)]
    assert copy_out(rows, [2], slots, heads) == expected(heads, [rows[:, 2].tobytes()])


@pytest.mark.parametrize("numbers", [[6], [-1], [0, 6]])
def test_entries_beyond_the_pages_are_refused(way: None, numbers: list[int]) -> None:
    rows = np.zeros((2, 6, 1024), np.uint8)
    slots = [memoryview(bytearray(2048)) for _ in numbers]
    with pytest.raises(IndexError):
        copy_out(rows, numbers, slots, [header(0) for _ in numbers])


@pytest.mark.parametrize("size", [2047, 2049])
def test_slots_of_another_length_are_refused(way: None, size: int) -> None:
    with pytest.raises(ValueError):
        copy_out(np.zeros((2, 6, 1024), np.uint8), [0], [memoryview(bytearray(size))], [header(0)])


def test_slots_that_cannot_be_written_are_refused(way: None) -> None:
    with pytest.raises((BufferError, TypeError)):
        copy_out(np.zeros((2, 6, 1024), np.uint8), [0], [memoryview(bytes(2048))], [header(0)])


@pytest.mark.parametrize(("num_parts", "part_bytes"), [(2, 4096), (1, 4480), (3, 100), (2, 1)])
def test_entries_are_written_where_they_belong_and_nowhere_else(way: None, num_parts: int, part_bytes: int) -> None:
    rng = np.random.default_rng(part_bytes)
    source = rng.integers(1, 256, (num_parts, 9, part_bytes), np.uint8)
    target, numbers = np.zeros_like(source), [7, 0, 8, 3]
    payloads = [source[:, number].tobytes() for number in numbers]
    copy_in(target, numbers, [payloads[0], *[memoryview(payload) for payload in payloads[1:]]])
    assert np.array_equal(target[:, numbers], source[:, numbers])
    assert not target[:, [1, 2, 4, 5, 6]].any()


@pytest.mark.parametrize(("num_parts", "part_bytes"), [(2, 4096), (1, 4480), (3, 100), (2, 1)])
def test_of_sealed_entries_only_the_intact_ones_are_written(way: None, num_parts: int, part_bytes: int) -> None:
    rng = np.random.default_rng(part_bytes)
    source = rng.integers(1, 256, (num_parts, 9, part_bytes), np.uint8)
    target, numbers = np.zeros_like(source), [7, 0, 8, 3]
    payloads: list[Payload] = [source[:, number].tobytes() for number in numbers]
    heads = [header(number) for number in numbers]
    checksums = expected(heads, payloads)
    checksums[1] ^= 1
    heads[2] = header(5)
    assert copy_in_sealed(target, numbers, payloads, heads, checksums) == [True, False, False, True]
    assert np.array_equal(target[:, [7, 3]], source[:, [7, 3]])
    assert not target[:, [0, 1, 2, 4, 5, 6, 8]].any()
    assert copy_in_sealed(target, [], [], [], []) == []
    with pytest.raises(ValueError):
        copy_in_sealed(target, [1], [payloads[0][1:]], heads[:1], checksums[:1])
    assert not target[:, 1].any()


@pytest.mark.parametrize(("number", "size"), [(6, 2048), (-1, 2048), (0, 2047), (0, 2049)])
def test_of_entries_that_do_not_fit_none_is_written(way: None, number: int, size: int) -> None:
    rows = np.zeros((2, 6, 1024), np.uint8)
    with pytest.raises((IndexError, ValueError)):
        copy_in(rows, [1, number], [b"x" * 2048, b"x" * size])
    assert not rows.any()


def test_addresses_are_those_of_the_first_bytes(way: None) -> None:
    rows = np.zeros((4, 100), np.uint8)
    views: list[Payload] = [*[memoryview(row.data) for row in rows], memoryview(rows[1].data).toreadonly()[5:]]
    assert addresses_of(views) == [rows.ctypes.data + at for at in (0, 100, 200, 300, 105)]
