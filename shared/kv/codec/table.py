"""The codecs. One is added by a module with its `CodecSpec`, and by its line here; its number is the wire's."""

from enum import IntEnum
from typing import Self

from shared.kv.codec.planes import LZ4, ZSTD
from shared.kv.codec.quantised import INT4, INT8
from shared.kv.codec.raw import RAW
from shared.kv.codec.spec import CodecSpec, Fidelity


class Codec(IntEnum):
    """The numbers are those of the wire enum `prfaas.v1.Codec`."""

    RAW = 1, RAW
    LZ4 = 2, LZ4
    INT8 = 3, INT8
    INT4 = 4, INT4
    ZSTD = 5, ZSTD

    spec: CodecSpec

    def __new__(cls, number: int, spec: CodecSpec | None = None) -> Self:
        assert spec is not None, "a member has one; `Codec(number)` looks a member up and does not come here"
        codec = int.__new__(cls, number)
        codec._value_ = number
        codec.spec = spec
        return codec


LOSSLESS_CODECS = tuple(codec for codec in Codec if codec.spec.fidelity is Fidelity.LOSSLESS)
