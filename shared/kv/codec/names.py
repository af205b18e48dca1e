"""The codecs and what each of them preserves."""

from enum import IntEnum

Payload = bytes | memoryview


class Codec(IntEnum):
    """The numbers are those of the wire enum `prfaas.v1.Codec`."""

    RAW = 1
    LZ4 = 2
    INT8 = 3
    INT4 = 4
    ZSTD = 5


class Fidelity(IntEnum):
    """What decoding gives back, best first (`prfaas.v1.Fidelity`). A lossy entry never poses as a lossless one."""

    LOSSLESS = 1
    INT8 = 2
    INT4 = 3

    def satisfies(self, asked: "Fidelity") -> bool:
        """Return whether an entry of this fidelity may be used by a request that asks for `asked`."""
        return self <= asked


FIDELITY_OF = {
    Codec.RAW: Fidelity.LOSSLESS,
    Codec.LZ4: Fidelity.LOSSLESS,
    Codec.ZSTD: Fidelity.LOSSLESS,
    Codec.INT8: Fidelity.INT8,
    Codec.INT4: Fidelity.INT4,
}

CODEC_OF = {Fidelity.INT8: Codec.INT8, Fidelity.INT4: Codec.INT4}
"""The codec of each lossy class."""
