"""Zstandard as an entropy coder: Huffman codes for bytes that hardly ever repeat in strings."""

import ctypes
import threading

import numpy as np
import zstandard
from numpy.typing import NDArray

from shared.errors import CorruptFrame
from shared.kv.codec.names import Payload
from shared.kv.codec.native import load_kernels
from shared.native import address_of


class _PerThread(threading.local):
    """A compressor, a decompressor and room for a frame: none may be used by two threads at once."""

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
        self._room = np.empty(0, np.uint8)
        self._room_at = 0

    def room_at(self, num_bytes: int) -> int:
        """Return the address of so many bytes, which are the next caller's too."""
        if self._room.size < num_bytes:
            self._room = np.empty(num_bytes, np.uint8)
            self._room_at = address_of(self._room)
        return self._room_at


_local = _PerThread()


def squeeze(data: Payload) -> bytes:
    """Compress bytes; what does not compress grows by some 10 bytes."""
    return _local.compressor.compress(data)


def squeeze_small(numbers: NDArray[np.uint8]) -> bytes:
    """Compress contiguous numbers that are mostly small, as `squeeze` does but without a search, if they all are."""
    kernels = load_kernels()
    if kernels is not None:
        frame_at = _local.room_at(numbers.size + numbers.size // 2 + 128)
        if size := kernels.prfaas_huffman_frame(address_of(numbers), numbers.size, frame_at):
            return ctypes.string_at(frame_at, size)
    return squeeze(numbers.data)


def expand(data: Payload, num_bytes: int) -> bytes:
    """Undo `squeeze`. Raises `CorruptFrame` unless that gives exactly `num_bytes` bytes; never makes more."""
    try:
        if zstandard.frame_content_size(data) != num_bytes:
            raise CorruptFrame(f"a compressed part does not hold {num_bytes} bytes")
        return _local.decompressor.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptFrame(f"a compressed part cannot be read: {error}") from error
