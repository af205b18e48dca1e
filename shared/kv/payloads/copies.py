"""Payloads into pages, and where payloads lie."""

from collections.abc import Sequence
from ctypes import byref, c_uint64, create_string_buffer
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from shared.kv.codec.spec import Payload
from shared.kv.payloads.digests import SHORT_BYTES, digests, side_by_side
from shared.kv.payloads.native import EntryParts, load_payload_kernels


def copy_in(rows: NDArray[np.uint8], numbers: Sequence[int], payloads: Sequence[Payload]) -> None:
    """Write entries, part after part, to where `numbers` say in `rows`, `[parts, all entries, bytes of a part]`.

    Raises `IndexError` for a number beyond them, `ValueError` for a payload that is not as long as an entry; nothing
    is written then.
    """
    _check(rows, numbers, payloads)
    library, parts = load_payload_kernels(), EntryParts.of(rows)
    if library is None or parts is None:
        for number, payload in zip(numbers, payloads, strict=True):
            _copy_one(rows, number, payload)
        return
    which = np.fromiter(numbers, np.int64, len(payloads))
    library.prfaas_copy_in(byref(parts), which.ctypes.data, list(payloads), len(payloads))


def copy_in_sealed(
    rows: NDArray[np.uint8],
    numbers: Sequence[int],
    payloads: Sequence[Payload],
    headers: Sequence[bytes],
    checksums: Sequence[int],
) -> list[bool]:
    """As `copy_in`, but only of entries whose `digest` is their checksum; return which these are."""
    _check(rows, numbers, payloads)
    library, parts = load_payload_kernels(), EntryParts.of(rows)
    if library is None or parts is None or not payloads or len(payloads[0]) <= SHORT_BYTES:
        intact = [found == checksum for found, checksum in zip(digests(headers, payloads), checksums, strict=True)]
        for number, payload in compress(zip(numbers, payloads, strict=True), intact):
            _copy_one(rows, number, payload)
        return intact
    count = len(payloads)
    joined, header_bytes = side_by_side(headers, count)
    which, wanted = np.fromiter(numbers, np.int64, count), (c_uint64 * count)(*checksums)
    verdicts = create_string_buffer(count)
    library.prfaas_copy_in_sealed(
        byref(parts), which.ctypes.data, list(payloads), count, joined, header_bytes, wanted, verdicts
    )
    return [verdict != 0 for verdict in verdicts.raw]


def addresses_of(payloads: Sequence[Payload]) -> list[int]:
    """Return where the payloads' bytes lie in this process, for as long as they are held."""
    library = load_payload_kernels()
    if library is None:
        return [np.frombuffer(payload, np.uint8).ctypes.data for payload in payloads]
    found = (c_uint64 * len(payloads))()
    library.prfaas_addresses(list(payloads), len(payloads), found)
    return list(found)


def _check(rows: NDArray[np.uint8], numbers: Sequence[int], payloads: Sequence[Payload]) -> None:
    num_parts, num_entries, part_bytes = rows.shape
    if min(numbers, default=0) < 0 or max(numbers, default=0) >= num_entries:
        raise IndexError(f"no such entry among {num_entries}")
    if any(len(payload) != num_parts * part_bytes for payload in payloads):
        raise ValueError(f"a payload is not an entry of {num_parts * part_bytes} bytes")


def _copy_one(rows: NDArray[np.uint8], number: int, payload: Payload) -> None:
    rows[:, number] = np.frombuffer(payload, np.uint8).reshape(len(rows), -1)
