"""What a codec is: its number on the wire, what it preserves, its two functions, and what it costs."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from shared.kv.layout import EntryShape

Payload = bytes | memoryview

Encode = Callable[[Payload, EntryShape, int], Payload]
"""Takes one entry, its shape, and how many leading tokens to keep as they are; a lossless codec keeps all anyway."""

Decode = Callable[[Payload, EntryShape], Payload]
"""Undoes `Encode`. Raises `CorruptFrame` unless the payload decodes to exactly one entry of the shape."""


class Fidelity(IntEnum):
    """What decoding gives back, best first (`prfaas.v1.Fidelity`). A lossy entry never poses as a lossless one."""

    LOSSLESS = 1
    INT8 = 2
    INT4 = 3

    def satisfies(self, asked: "Fidelity") -> bool:
        """Return whether an entry of this fidelity may be used by a request that asks for `asked`."""
        return self <= asked


class CodecCost(NamedTuple):
    """What a codec gains and costs, measured by `python -m benchmarks.codec` on one core; low, to be sure of a gain."""

    ratio: float  # bytes of KV to bytes on the link
    encode_bytes_per_s: float  # of KV
    decode_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """One codec. All that the suite knows of it stands here."""

    fidelity: Fidelity
    encode: Encode
    decode: Decode
    cost: CodecCost | None  # None: never chosen automatically
