"""Zstandard as an entropy coder: Huffman codes for bytes that hardly ever repeat in strings."""

import threading

import zstandard

from shared.errors import CorruptFrame
from shared.kv.codec.spec import Payload


class _PerThread(threading.local):
    """A compressor and a decompressor: neither may be used by two threads at once."""

    def __init__(self) -> None:
        # The cheapest search, for matches that are longer than noise makes them: what gains here is the Huffman stage.
        parameters = zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST,
            window_log=17,
            hash_log=8,
            chain_log=6,
            search_log=1,
            min_match=7,
            write_content_size=True,
        )
        self.compressor = zstandard.ZstdCompressor(compression_params=parameters)
        self.decompressor = zstandard.ZstdDecompressor()


_local = _PerThread()


def squeeze(data: Payload) -> bytes:
    """Compress bytes; what does not compress grows by the header of a frame."""
    return _local.compressor.compress(data)


def expand(data: Payload, num_bytes: int) -> bytes:
    """Undo `squeeze`. Raises `CorruptFrame` unless that gives exactly `num_bytes` bytes; never makes more."""
    try:
        if zstandard.frame_content_size(data) != num_bytes:
            raise CorruptFrame(f"a compressed part does not hold {num_bytes} bytes")
        return _local.decompressor.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptFrame(f"a compressed part cannot be read: {error}") from error
