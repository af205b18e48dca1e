"""XXH3-64 of payloads, each seeded with the digest of its header."""

from collections.abc import Sequence
from ctypes import byref, c_uint64

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from shared.kv.codec.spec import Payload
from shared.kv.payloads.native import EntryParts, load_payload_kernels

SHORT_BYTES = 240
"""Up to here XXH3 is another function, which only the package has. Entries of real models are longer."""
MIN_HEADER_BYTES, MAX_HEADER_BYTES = 33, 64
_STRIPE_BYTES = 64


def digest(header: bytes, payload: Payload) -> int:
    """Return the digest of one payload, seeded with that of its header."""
    return xxh3_64_intdigest(payload, xxh3_64_intdigest(header))


def digests(headers: Sequence[bytes], payloads: Sequence[Payload], num_threads: int = 1) -> list[int]:
    """Return `digest` of each; the headers are of one length, 33 to 64 bytes.

    So many threads share the work at most, this one among them, where it is done without the interpreter.
    """
    library = load_payload_kernels()
    if library is None or not payloads or min(map(len, payloads)) <= SHORT_BYTES:
        return [digest(header, payload) for header, payload in zip(headers, payloads, strict=True)]
    joined, header_bytes = side_by_side(headers, len(payloads))
    found = (c_uint64 * len(payloads))()
    library.prfaas_digests(joined, header_bytes, list(payloads), len(payloads), found, num_threads)
    return list(found)


def copy_out(
    rows: NDArray[np.uint8], numbers: Sequence[int], slots: Sequence[memoryview], headers: Sequence[bytes]
) -> list[int]:
    """Copy entries into slots, part after part, and return their digests as `digests` does: they are read once.

    `rows` is `[parts, all entries, bytes of a part]`, as `shared.kv.tensors.entry_rows` has it; `numbers` say which
    entries. Slots are writable and of exactly an entry's length. What is digested is what was read from `rows`.
    """
    library, parts = load_payload_kernels(), EntryParts.of(rows)
    num_parts, num_entries, part_bytes = rows.shape
    if min(numbers, default=0) < 0 or max(numbers, default=0) >= num_entries:
        raise IndexError(f"no such entry among {num_entries}")
    if not slots:
        return []
    if library is None or parts is None or part_bytes % _STRIPE_BYTES or num_parts * part_bytes <= SHORT_BYTES:
        return [
            _copy_one(rows[:, number], slot, header)
            for number, slot, header in zip(numbers, slots, headers, strict=True)
        ]
    joined, header_bytes = side_by_side(headers, len(slots))
    found = (c_uint64 * len(slots))()
    which = np.fromiter(numbers, np.int64, len(slots))
    library.prfaas_copy_out(byref(parts), which.ctypes.data, list(slots), len(slots), joined, header_bytes, found)
    return list(found)


def _copy_one(entry: NDArray[np.uint8], slot: memoryview, header: bytes) -> int:
    raw = entry.tobytes()
    slot[:] = raw
    return digest(header, raw)


def side_by_side(headers: Sequence[bytes], count: int) -> tuple[bytes, int]:
    """Return `count` headers as one, and the length of each."""
    joined = b"".join(headers)
    header_bytes = len(joined) // max(1, count)
    assert len(headers) == count, "one header for each"
    assert len(joined) == header_bytes * count, "of one length"
    assert MIN_HEADER_BYTES <= header_bytes <= MAX_HEADER_BYTES, "of a length that is known here"
    return joined, header_bytes
